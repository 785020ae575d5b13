/* Read a network from a file of `tune-sparsity export --format packed`, and multiply with its matrices without
 * unpacking them. read_packed.py in this folder describes the format.
 *
 *     packed_file file;
 *     packed_tensor layer;
 *     if (packed_open(&file, bytes, size)) return 1;       // the caller keeps the bytes in memory
 *     while (packed_next(&file, &layer) == 1)              // 1: a tensor, 0: there are no more, -1: malformed
 *         if (packed_is(&layer, "0.weight")) packed_matvec(&layer, x, y);
 *
 * Everything is checked before its use. packed_value returns floats: long numbers lose digits, complex ones are NaN. */
#ifndef TUNE_SPARSITY_PACKED_H
#define TUNE_SPARSITY_PACKED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PACKED_DENSE, PACKED_BITMAP, PACKED_RICE, PACKED_SAME, PACKED_COMPACT, PACKED_DIMENSIONS = 16 };
enum { PACKED_F32, PACKED_F16, PACKED_BF16, PACKED_F64, PACKED_I64, PACKED_I32, PACKED_I16, PACKED_I8, PACKED_U8,
       PACKED_BOOL, PACKED_U16, PACKED_U32, PACKED_U64, PACKED_C64, PACKED_C128, PACKED_CODES8, PACKED_CODES1 = 18,
       PACKED_SIGNS };

typedef struct { const uint8_t *data; uint64_t size, place, tensors, left; } packed_file; /* left: not read */
/* The z numbers that say which of `size` places hold values: gaps, or the runs of `count` rows or columns. */
typedef struct { const uint8_t *index, *remainders; uint64_t size, count, z; int k[2]; } packed_list;
typedef struct {
    const char *name; /* without a 0 at its end */
    uint64_t name_length, shape[PACKED_DIMENSIONS], n, rows;
    int type, form, bits, dimensions; /* form: without PACKED_COMPACT */
    packed_list row_set, column_set, places;
    const uint8_t *scales, *values;
    uint64_t same; /* for PACKED_SAME: the place in the file of the equal tensor */
} packed_tensor;

typedef struct { uint64_t i, bit, at, left; } packed_walk; /* over a list. left: from here to the end of the run */
typedef struct { packed_walk value, row, column; uint64_t rank, rows_met; } packed_cursor; /* over the stored values */

static inline int packed_bit(const uint8_t *data, uint64_t at) { return data[at >> 3] >> (at & 7) & 1; }
static inline uint64_t packed_bits(const uint8_t *data, uint64_t at, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint64_t)packed_bit(data, at + i) << i;
    return value;
}

static inline uint64_t packed_number(const packed_list *l, packed_walk *w) {
    uint64_t quotient = 0, i = w->i++, turn = i & 1, at = i / 2 * (l->k[0] + l->k[1]) + turn * l->k[0];
    while (l->index && !packed_bit(l->index, w->bit++)) quotient++;
    return (quotient << l->k[turn]) + packed_bits(l->remainders, at, l->k[turn]);
}

/* Go so many members further in a set. A walk of zeros goes to the first member, and from there further. */
static inline void packed_skip(const packed_list *l, packed_walk *w, uint64_t members) {
    for (; members >= w->left; w->left = l->z ? packed_number(l, w) + 1 : l->size) {
        members -= w->left;
        w->at += w->left + !!w->left + (l->z ? packed_number(l, w) : 0);
    }
    w->at += members, w->left -= members;
}

/* Go to the next stored value, which is at row.at and column.at. Return 0 after the last one. */
static inline int packed_step(const packed_tensor *t, packed_cursor *c) {
    uint64_t first = !c->value.i, right;
    if (c->value.i == t->places.z) return 0;
    c->rank += right = packed_number(&t->places, &c->value) + !first;
    if (first || c->rank >= t->column_set.count) {
        packed_skip(&t->row_set, &c->row, c->rank / t->column_set.count);
        right = c->rank %= t->column_set.count;
        c->column = (packed_walk){0, 0, 0, 0}, c->rows_met++;
    }
    packed_skip(&t->column_set, &c->column, right);
    return 1;
}

static inline float packed_half(const uint8_t *data) {
    int bits = data[0] | data[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent ? ldexpf((float)(fraction + 1024), exponent - 25) : ldexpf((float)fraction, -24);
    return bits >> 15 ? -size : size;
}

/* Return the stored value at the cursor. Numbers are read as little-endian, as on this machine. */
static inline float packed_value(const packed_tensor *t, const packed_cursor *c) {
    uint64_t i = c->value.i - 1, half = (uint64_t)1 << ((t->bits - 1) & 63), raw = 0;
    float narrow; double wide;
    if (t->type == PACKED_F32) return memcpy(&narrow, t->values + 4 * i, 4), narrow;
    if (t->bits < 8) raw = packed_bits(t->values, i * t->bits, t->bits);
    else memcpy(&raw, t->values + i * t->bits / 8, t->bits > 64 ? 0 : t->bits / 8);
    switch (t->type) {
    case PACKED_BF16: return raw <<= 16, memcpy(&narrow, &raw, 4), narrow;
    case PACKED_F64: return memcpy(&wide, &raw, 8), (float)wide;
    case PACKED_F16: return packed_half(t->values + 2 * i);
    case PACKED_I64: case PACKED_I32: case PACKED_I16: case PACKED_I8: return (float)(int64_t)((raw ^ half) - half);
    case PACKED_C64: case PACKED_C128: return NAN;
    case PACKED_SIGNS: return raw ? 1.0f : -1.0f;
    }
    if (t->type < PACKED_CODES8) return (float)raw;
    narrow = packed_half(t->scales + 2 * (c->rows_met - 1)) * (float)((raw & (half - 1)) + 1);
    return raw >= half ? -narrow : narrow;
}

/* out: n floats, the whole tensor. */
static inline void packed_dense(const packed_tensor *t, float *out) {
    packed_cursor c = {0};
    for (uint64_t i = 0; i < t->n; i++) out[i] = 0;
    while (packed_step(t, &c)) out[c.row.at * t->column_set.size + c.column.at] = packed_value(t, &c);
}

/* Compute y = W x. W is the tensor as a matrix: its rows are the first dimension, its columns all others together. */
static inline void packed_matvec(const packed_tensor *t, const float *x, float *y) {
    packed_cursor c = {0};
    for (uint64_t row = 0; row < t->rows; row++) y[row] = 0;
    while (packed_step(t, &c)) y[c.row.at] += packed_value(t, &c) * x[c.column.at];
}
static inline int packed_is(const packed_tensor *t, const char *name) {
    return strlen(name) == t->name_length && !memcmp(name, t->name, t->name_length);
}

static inline uint32_t packed_crc(const uint8_t *data, uint64_t size) {
    uint32_t crc = ~(uint32_t)0;
    for (uint64_t bit = 0; bit < 8 * size; bit++)
        crc ^= bit % 8 ? 0 : data[bit / 8], crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    return ~crc;
}

static inline const uint8_t *packed_take(packed_file *f, uint64_t bytes) { /* NULL if the file ends before */
    return bytes > f->size - f->place ? NULL : f->data + (f->place += bytes) - bytes;
}
static inline int packed_varint(packed_file *f, uint64_t *value) {
    const uint8_t *byte;
    *value = 0;
    for (int shift = 0; shift <= 42; shift += 7) {
        if (!(byte = packed_take(f, 1))) return -1;
        *value |= (uint64_t)(*byte & 127) << shift;
        if (*byte < 128) return *byte || !shift ? 0 : -1;
    }
    return -1;
}
static inline const uint8_t *packed_take_bits(packed_file *f, uint64_t bits) { /* NULL also if unused bits are not 0 */
    const uint8_t *start = packed_take(f, bits / 8 + (bits % 8 != 0));
    return start && bits % 8 && start[bits / 8] >> bits % 8 ? NULL : start;
}

static inline int packed_open(packed_file *f, const uint8_t *data, uint64_t size) { /* 0, or -1 for no sound file */
    if (size < 9 || memcmp(data, "TSP1", 4)) return -1;
    uint32_t crc = data[size - 4] | data[size - 3] << 8 | data[size - 2] << 16 | (uint32_t)data[size - 1] << 24;
    *f = (packed_file){data, size - 4, 4, 0, 0};
    return crc != packed_crc(data, size - 4) || packed_varint(f, &f->tensors) ? -1 : (f->left = f->tensors, 0);
}

static inline int packed_list_at(packed_file *f, packed_list *l, int set, int bitmap) { /* finds and checks it */
    uint64_t ones = 0, bits = 0, z, sum[2];
    const uint8_t *k; packed_walk w = {0, 0, 0, 0};
    if (packed_varint(f, &z) || z > l->size || (set && z && !(k = packed_take(f, 1)))) return -1;
    if (set && !z) return 0;
    if (set) l->k[0] = *k & 15, l->k[1] = *k >> 4;
    l->index = f->data + f->place, l->z = z << set;
    for (; ones < l->z || (bitmap && bits < l->size); ones += packed_bit(l->index, bits++))
        if (bits == (f->size - f->place) * 8) return -1;
    if (ones > l->z || !packed_take_bits(f, bits)) return -1;
    if (!(l->remainders = packed_take_bits(f, z * (l->k[0] + l->k[1]) >> !set))) return -1;
    for (sum[0] = set ? z - 1 : 0, sum[1] = z, ones = 0; ones < l->z; ones++) sum[ones & 1] += packed_number(l, &w);
    return l->count = sum[1], sum[0] + sum[1] > l->size ? -1 : 0;
}

static inline int packed_content(packed_file *f, packed_tensor *t, int compact) { /* after the dimensions */
    packed_cursor c = {0};
    if (t->form == PACKED_SAME) return packed_varint(f, &t->same) || t->same >= f->tensors ? -1 : 1;
    t->rows = t->row_set.size = t->row_set.count = t->dimensions ? t->shape[0] : 1;
    t->column_set.size = t->column_set.count = t->n ? t->n / t->rows : 0;
    if (compact && (!t->n || packed_list_at(f, &t->row_set, 1, 0) || packed_list_at(f, &t->column_set, 1, 0)))
        return -1;
    t->places.z = t->places.size = t->row_set.count * t->column_set.count;
    if (t->form != PACKED_DENSE && packed_list_at(f, &t->places, 0, t->form == PACKED_BITMAP)) return -1;
    if (t->places.z * t->bits > (f->size - f->place) * 8) return -1;
    while (t->type >= PACKED_CODES8 && t->type <= PACKED_CODES1 && packed_step(t, &c)) {}
    if (!(t->scales = packed_take(f, 2 * c.rows_met)) ||
        !(t->values = packed_take_bits(f, t->places.z * t->bits))) return -1;
    for (uint64_t i = 0; t->type == PACKED_CODES8 && i < t->places.z; i++) if ((t->values[i] & 127) == 127) return -1;
    return 1;
}

static inline int packed_next(packed_file *f, packed_tensor *t) { /* 1, 0 after the last one, or -1 if malformed */
    static const int bits[] = {32, 16, 16, 64, 64, 32, 16, 8, 8, 8, 16, 32, 64, 64, 128, 8, 4, 2, 1, 1};
    const uint8_t *head; int empty = 0;
    *t = (packed_tensor){.n = 1};
    if (!f->left--) return f->left = 0, f->place == f->size ? 0 : -1;
    if (packed_varint(f, &t->name_length) || !(t->name = (const char *)packed_take(f, t->name_length))) return -1;
    if (!(head = packed_take(f, 3)) || head[0] > PACKED_SIGNS || (head[1] & 15) > PACKED_COMPACT + 2) return -1;
    t->type = head[0], t->form = head[1] & 3, t->bits = bits[head[0]], t->dimensions = head[2];
    t->places.k[0] = t->places.k[1] = head[1] >> 4;
    if ((head[1] >> 4 && t->form != PACKED_RICE) || t->dimensions > PACKED_DIMENSIONS) return -1;
    for (int i = 0; i < t->dimensions; i++) {
        if (packed_varint(f, &t->shape[i]) || t->shape[i] > ((uint64_t)1 << 48) / t->n) return -1;
        empty |= !t->shape[i];
        if ((t->n *= t->shape[i] ? t->shape[i] : 1) >> 48) return -1;
    }
    if (empty) t->n = 0;
    return packed_content(f, t, head[1] & PACKED_COMPACT);
}
#endif
