/* Multiply packed signs with packed weights: n - 2 popcount(x xor w), for vectors of n signs.
 *
 * A sign is a bit, and 1 stands for +1. A vector consists of whole words of 64 bits, and unused bits are 0. Only
 * sparsity/binary/popcount.py calls this file, and it guarantees that every address is valid. The file is part of the
 * module that kernel.c defines.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v3", "arch=x86-64-v2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int64_t batch, rows, words, n;
    const uint64_t *x, *w; /* (batch, words), (rows, words) */
    const int32_t *least;  /* (rows): the least product with the sign +1; none: the results are products */
    int32_t *products;     /* (batch, rows) */
    uint64_t *bits;        /* (batch, words of `rows` signs) */
} Layer;

INLINE int64_t different_bits(const uint64_t *x, const uint64_t *w, int64_t words)
{
    int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < words; k++) sum += __builtin_popcountll(x[k] ^ w[k]);
    return sum;
}

FOR_EACH_PROCESSOR
static void multiply(const Layer *l)
{
    const int64_t out_words = (l->rows + 63) / 64;
    for (int64_t i = 0; i < l->batch; i++) {
        const uint64_t *const x = l->x + i * l->words;
        uint64_t *const bits = l->least ? l->bits + i * out_words : NULL;
        if (bits) memset(bits, 0, out_words * sizeof *bits);
        for (int64_t row = 0; row < l->rows; row++) {
            const int32_t product = (int32_t)(l->n - 2 * different_bits(x, l->w + row * l->words, l->words));
            if (bits) bits[row / 64] |= (uint64_t)(product >= l->least[row]) << row % 64;
            else l->products[i * l->rows + row] = product;
        }
    }
}

static int64_t whole(PyObject *const **arguments) { return PyLong_AsLongLong(*(*arguments)++); }
static void *address(PyObject *const **arguments) { return PyLong_AsVoidPtr(*(*arguments)++); }

PyObject *call_multiply_signs(PyObject *self, PyObject *const *arguments, Py_ssize_t given); /* kernel.c has it, too */

PyObject *call_multiply_signs(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (given != 8) {
        PyErr_Format(PyExc_TypeError, "8 arguments are wanted, got %zd", given);
        return NULL;
    }
    PyObject *const **a = &arguments;
    Layer l = {0};
    l.batch = whole(a), l.rows = whole(a), l.n = whole(a), l.words = (l.n + 63) / 64;
    l.x = address(a), l.w = address(a), l.least = address(a), l.products = address(a), l.bits = address(a);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    multiply(&l);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}
