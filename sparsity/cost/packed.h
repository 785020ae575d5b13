/* Read a network from a file of `tune-sparsity export --format packed`, and multiply with its matrices without unpacking
 * them. read_packed.py in this folder describes the format.
 *
 *     packed_file file;
 *     packed_tensor layer;
 *     if (packed_open(&file, bytes, size)) return 1;       // the caller keeps the bytes in memory
 *     while (packed_next(&file, &layer) == 1)              // 1: a tensor, 0: there are no more, -1: malformed
 *         if (packed_is(&layer, "0.weight")) packed_matvec(&layer, x, y);
 *
 * Everything is checked before it is used. packed_value returns floats, so that 64-bit numbers lose digits. It returns
 * NaN for complex types, which it does not support. */
#ifndef TUNE_SPARSITY_PACKED_H
#define TUNE_SPARSITY_PACKED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PACKED_DENSE, PACKED_BITMAP, PACKED_RICE, PACKED_SAME, PACKED_DIMENSIONS = 16 };
enum { PACKED_F32, PACKED_F16, PACKED_BF16, PACKED_F64, PACKED_I64, PACKED_I32, PACKED_I16, PACKED_I8, PACKED_U8,
       PACKED_BOOL, PACKED_U16, PACKED_U32, PACKED_U64, PACKED_C64, PACKED_C128, PACKED_CODES8, PACKED_CODES1 = 18,
       PACKED_SIGNS };

typedef struct {
    const uint8_t *data;
    uint64_t size, place, tensors, left; /* left: tensors that have not been read */
} packed_file;

typedef struct {
    const char *name; /* without a 0 at its end */
    uint64_t name_length, shape[PACKED_DIMENSIONS], n, rows, z;
    int type, form, k, bits, dimensions;
    const uint8_t *index, *remainders, *scales, *values;
    uint64_t same; /* for PACKED_SAME: the place in the file of the equal tensor */
} packed_tensor;

typedef struct { uint64_t i, at, bit, rows_met, last_row; } packed_cursor; /* walks over the stored values */

static inline int packed_bit(const uint8_t *data, uint64_t at) { return data[at >> 3] >> (at & 7) & 1; }

static inline uint64_t packed_bits(const uint8_t *data, uint64_t at, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint64_t)packed_bit(data, at + i) << i;
    return value;
}

/* Go to the next stored value. Its place in the flat tensor goes to `at`. Return 0 after the last one. */
static inline int packed_step(const packed_tensor *t, packed_cursor *c) {
    uint64_t gap = 0;
    if (c->i == t->z) return 0;
    while (t->form != PACKED_DENSE && !packed_bit(t->index, c->bit++)) gap++;
    if (t->form == PACKED_RICE) gap = (gap << t->k) + packed_bits(t->remainders, c->i * t->k, t->k);
    c->at = c->i ? c->at + gap + 1 : gap;
    c->i++;
    uint64_t row = c->at / (t->n / t->rows);
    if (!c->rows_met || row != c->last_row) c->rows_met++, c->last_row = row;
    return 1;
}

static inline float packed_half(const uint8_t *data) {
    int bits = data[0] | data[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent ? ldexpf((float)(fraction + 1024), exponent - 25) : ldexpf((float)fraction, -24);
    return bits >> 15 ? -size : size;
}

#define PACKED_AS(kind) { kind v; memcpy(&v, at, sizeof v); return (float)v; }

/* Return the stored value at the cursor. Numbers are read as little-endian, as on this machine. */
static inline float packed_value(const packed_tensor *t, const packed_cursor *c) {
    const uint8_t *at = t->values + (t->bits < 8 ? 0 : (c->i - 1) * (t->bits / 8));
    uint32_t upper = 0;
    float value;
    switch (t->type) {
    case PACKED_F32: PACKED_AS(float)
    case PACKED_F16: return packed_half(at);
    case PACKED_BF16: upper = (uint32_t)(at[0] | at[1] << 8) << 16; memcpy(&value, &upper, 4); return value;
    case PACKED_F64: PACKED_AS(double)
    case PACKED_I64: PACKED_AS(int64_t) case PACKED_I32: PACKED_AS(int32_t)
    case PACKED_I16: PACKED_AS(int16_t) case PACKED_I8: PACKED_AS(int8_t)
    case PACKED_U64: PACKED_AS(uint64_t) case PACKED_U32: PACKED_AS(uint32_t)
    case PACKED_U16: PACKED_AS(uint16_t) case PACKED_U8: case PACKED_BOOL: PACKED_AS(uint8_t)
    case PACKED_C64: case PACKED_C128: return NAN;
    case PACKED_SIGNS: return packed_bit(t->values, c->i - 1) ? 1.0f : -1.0f;
    }
    uint64_t code = packed_bits(t->values, (c->i - 1) * t->bits, t->bits), half = (uint64_t)1 << (t->bits - 1);
    float scale = packed_half(t->scales + 2 * (c->rows_met - 1)), size = (float)((code & (half - 1)) + 1);
    return scale * (code >= half ? -size : size);
}

/* out: n floats, the whole tensor. */
static inline void packed_dense(const packed_tensor *t, float *out) {
    packed_cursor c = {0, 0, 0, 0, 0};
    for (uint64_t i = 0; i < t->n; i++) out[i] = 0;
    while (packed_step(t, &c)) out[c.at] = packed_value(t, &c);
}

/* Compute y = W x. W is the tensor as a matrix: its rows are the first dimension, its columns all others together. */
static inline void packed_matvec(const packed_tensor *t, const float *x, float *y) {
    packed_cursor c = {0, 0, 0, 0, 0};
    for (uint64_t row = 0; row < t->rows; row++) y[row] = 0;
    while (packed_step(t, &c)) y[c.last_row] += packed_value(t, &c) * x[c.at % (t->n / t->rows)];
}
static inline int packed_is(const packed_tensor *t, const char *name) {
    return strlen(name) == t->name_length && !memcmp(name, t->name, t->name_length);
}

static inline uint32_t packed_crc(const uint8_t *data, uint64_t size) {
    uint32_t crc = ~(uint32_t)0;
    for (uint64_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static inline const uint8_t *packed_take(packed_file *f, uint64_t bytes) { /* NULL if the file ends before */
    if (bytes > f->size - f->place) return NULL;
    f->place += bytes;
    return f->data + f->place - bytes;
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
    if (crc != packed_crc(data, size - 4) || packed_varint(f, &f->tensors)) return -1;
    return f->left = f->tensors, 0;
}

static inline int packed_index(packed_file *f, packed_tensor *t) { /* finds and checks the index */
    uint64_t ones = 0, bits = 0;
    packed_cursor c = {0, 0, 0, 0, 0};
    if (packed_varint(f, &t->z) || t->z > t->n) return -1;
    if (t->form == PACKED_BITMAP) {
        if (!(t->index = packed_take_bits(f, t->n))) return -1;
        for (uint64_t i = 0; i < t->n; i++) ones += packed_bit(t->index, i);
        return ones == t->z ? 0 : -1;
    }
    for (t->index = f->data + f->place; ones < t->z; bits++) {
        if (bits == (f->size - f->place) * 8) return -1;
        ones += packed_bit(t->index, bits);
    }
    if (!packed_take_bits(f, bits) || !(t->remainders = packed_take_bits(f, t->z * t->k))) return -1;
    while (packed_step(t, &c)) {}
    return t->z && c.at >= t->n ? -1 : 0;
}

static inline int packed_content(packed_file *f, packed_tensor *t, int empty) { /* reads the part after the dimensions */
    packed_cursor c = {0, 0, 0, 0, 0};
    if (t->form == PACKED_SAME) return packed_varint(f, &t->same) || t->same >= f->tensors ? -1 : 1;
    t->rows = t->dimensions ? t->shape[0] : 1;
    t->z = t->n = empty ? 0 : t->n;
    if (t->form != PACKED_DENSE && packed_index(f, t)) return -1;
    if (t->type >= PACKED_CODES8 && t->type <= PACKED_CODES1) {
        while (t->form != PACKED_DENSE && packed_step(t, &c)) {}
        if (t->form == PACKED_DENSE) c.rows_met = t->n ? t->rows : 0;
        if (!(t->scales = packed_take(f, 2 * c.rows_met))) return -1;
    }
    if (!(t->values = packed_take_bits(f, t->z * t->bits))) return -1;
    for (uint64_t i = 0; t->type == PACKED_CODES8 && i < t->z; i++)
        if ((t->values[i] & 127) == 127) return -1;
    return 1;
}

/* Returns 1 for a tensor, 0 after the last one, -1 for a malformed file. */
static inline int packed_next(packed_file *f, packed_tensor *t) {
    static const int bits[] = {32, 16, 16, 64, 64, 32, 16, 8, 8, 8, 16, 32, 64, 64, 128, 8, 4, 2, 1, 1};
    const uint8_t *head;
    int empty = 0;
    *t = (packed_tensor){0};
    if (!f->left--) return f->left = 0, f->place == f->size ? 0 : -1;
    if (packed_varint(f, &t->name_length) || !(t->name = (const char *)packed_take(f, t->name_length))) return -1;
    if (!(head = packed_take(f, 3)) || head[0] > PACKED_SIGNS || (head[1] & 15) > PACKED_SAME) return -1;
    t->type = head[0], t->form = head[1] & 15, t->k = head[1] >> 4, t->bits = bits[head[0]], t->dimensions = head[2];
    if ((t->k && t->form != PACKED_RICE) || t->dimensions > PACKED_DIMENSIONS) return -1;
    t->n = 1;
    for (int i = 0; i < t->dimensions; i++) {
        if (packed_varint(f, &t->shape[i]) || t->shape[i] > ((uint64_t)1 << 48) / t->n) return -1;
        empty |= !t->shape[i];
        t->n *= t->shape[i] ? t->shape[i] : 1;
    }
    return t->n >> 48 ? -1 : packed_content(f, t, empty);
}
#endif
