/* Reads files from standard input, each behind its length in 8 bytes, with packed.h. Writes of each tensor the length of
 * its name, its name, how many numbers it has, these as floats, how many rows, and the rows' products with 1, 2, 3, ...
 * Every number that is not of the network has 8 bytes. -1 ends a file, and -2 one that is refused. */
#include <stdio.h>
#include <stdlib.h>

#include "packed.h"

#define MOST 1000000

static void put(int64_t number) { fwrite(&number, 8, 1, stdout); }

static void put_tensor(const packed_tensor *named, const packed_tensor *t) {
    uint64_t columns = t->rows ? t->n / t->rows : 0;
    if (t->n > MOST || t->rows > MOST) return; /* of a file that says so, and holds next to nothing */
    float *dense = malloc(t->n * 4 + 1), *x = malloc(columns * 4 + 1), *y = malloc(t->rows * 4 + 1);
    for (uint64_t i = 0; i < columns; i++) x[i] = (float)(i + 1);
    packed_dense(t, dense);
    packed_matvec(t, x, y);
    put(named->name_length);
    fwrite(named->name, 1, named->name_length, stdout);
    put(t->n);
    fwrite(dense, 4, t->n, stdout);
    put(t->rows);
    fwrite(y, 4, t->rows, stdout);
    free(dense), free(x), free(y);
}

/* Finds the tensor at a place. Returns 0 where there is none, or one that is equal to another itself. */
static int find(const uint8_t *data, uint64_t size, uint64_t place, packed_tensor *t) {
    packed_file f;
    if (packed_open(&f, data, size)) return 0;
    for (uint64_t i = 0; i <= place; i++)
        if (packed_next(&f, t) != 1) return 0;
    return t->form != PACKED_SAME;
}

static int walk(const uint8_t *data, uint64_t size, int write) {
    packed_file f;
    packed_tensor t, other;
    int more;
    if (packed_open(&f, data, size)) return -2;
    while ((more = packed_next(&f, &t)) == 1) {
        const packed_tensor *one = &t;
        if (t.form == PACKED_SAME) {
            if (!find(data, size, t.same, &other) || other.type != t.type || other.dimensions != t.dimensions) return -2;
            if (memcmp(other.shape, t.shape, sizeof t.shape)) return -2;
            one = &other;
        }
        if (write) put_tensor(&t, one);
    }
    return more ? -2 : -1;
}

int main(void) {
    uint64_t size;
    while (fread(&size, 8, 1, stdin) == 1) {
        uint8_t *data = malloc(size + !size); /* as large as the file: what is read beyond is seen */
        if (fread(data, 1, size, stdin) != size) return 1;
        int end = walk(data, size, 0);
        if (end == -1) walk(data, size, 1);
        put(end);
        free(data);
    }
    return 0;
}
