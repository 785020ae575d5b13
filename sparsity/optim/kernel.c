/* Make a step of LpSGD on a CPU in float32, row by row. sparsity/optim/foreach.py needs about thirty passes for it.
 *
 * A few rows at a time are updated in the processor's nearest cache. If most weights are masked, only the active ones are
 * updated. Only sparsity/optim/fused.py calls this file, and it guarantees that every address is valid. Powers are
 * exp2(a log2 x) of values with a lower limit, as in sparsity/optim/row_ops.py. The calls do not depend on each other,
 * and none waits or allocates memory.
 */

#define Py_LIMITED_API 0x030B0000 /* one file for every Python from 3.11 on */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

static const float SMALLEST_GRADIENT = 2e-38f; /* its inverse is finite; smaller gradients count as none */
static const float LOWEST = -106.0f;           /* powers are at least 2^LOWEST, so that none is subnormal */
static const float NO_NORM = 1e-30f;           /* a smaller sum of |v|^q belongs to a row of zeros */
static const float GAIN_MIN = 1e-6f;           /* the smallest gain, because a step divides by it */

/* Numbers below the smallest normal one count as 0 until `restore`. The momentum of a weight whose input is always zero
 * decays to such numbers, and each takes the processor as much time as a hundred normal ones. */
#if defined(__SSE__)
#include <xmmintrin.h>
INLINE unsigned subnormals_away(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
INLINE void restore(unsigned before) { _mm_setcsr(before); }
#else
INLINE unsigned subnormals_away(void) { return 0; }
INLINE void restore(unsigned before) { (void)before; }
#endif

INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }
INLINE float magnitude(float x) { return __builtin_fabsf(x); }

/* Return log2 of a normal x > 0: its exponent, plus (m - 1) P(m - 1) for its mantissa m in [sqrt(1/2), sqrt(2)). P is the
 * interpolation of log2(1 + t)/t in Chebyshev's nodes, with a relative error of 4e-9. */
INLINE float log2_of(float x)
{
    int32_t bits, exponent;
    memcpy(&bits, &x, 4);
    exponent = (bits - 0x3f3504f3) >> 23;
    bits -= exponent * (1 << 23);
    memcpy(&x, &bits, 4);
    const float t = x - 1.0f;
    float sum = -0.110201597f;
    sum = sum * t + 0.186312094f;
    sum = sum * t - 0.191024974f;
    sum = sum * t + 0.204575285f;
    sum = sum * t - 0.239619046f;
    sum = sum * t + 0.288568884f;
    sum = sum * t - 0.360696644f;
    sum = sum * t + 0.480898201f;
    sum = sum * t - 0.721347332f;
    sum = sum * t + 1.44269502f;
    return (float)exponent + t * sum;
}

/* Return 2^x for x in [-126, 127]. The nearest whole number goes into the exponent, and the rest f gives 1 + f P(f). */
INLINE float exp2_of(float x)
{
    const int32_t whole = (int32_t)(x + 127.5f) - 127;
    const float f = x - (float)whole;
    int32_t bits;
    float sum = 0.000154614478f;
    sum = sum * f + 0.00133908668f;
    sum = sum * f + 0.00961805694f;
    sum = sum * f + 0.0555035695f;
    sum = sum * f + 0.240226507f;
    sum = sum * f + 0.693147182f;
    sum = 1.0f + f * sum;
    memcpy(&bits, &sum, 4);
    bits += whole * (1 << 23);
    memcpy(&sum, &bits, 4);
    return sum;
}

/* Return x^exponent for x >= 0. 0 counts as the smallest normal number. */
INLINE float power_of(float x, float exponent)
{
    return exp2_of(smaller(larger(exponent * log2_of(larger(x, FLT_MIN)), LOWEST), 127.0f));
}

enum {
    LANES = 16,  /* numbers in the widest registers; arrays are padded to a multiple of it, so that loops have no rest */
    BLOCK = 16,  /* the most rows of a block; operations on one number for each row are done for a whole block */
    NEAR = 4096, /* the most numbers in a block of several rows: twice as many fit into the nearest cache */
};

typedef struct {
    int64_t rows, fan_in;
    float *grad, *param, *v, *buffer; /* (rows, fan-in); no buffer without momentum */
    float *gain, *gain_buffer;        /* (rows); no buffer without momentum, or if gains are constant */
    float *mask;                      /* (rows, fan-in) of zeros and ones, or none */
    int32_t *places;                  /* the columns of the active weights, row after row; a row may have none */
    int64_t *starts;                  /* (rows + 1): the start of each row in `places`; none: all weights are updated */
    float *latent;                    /* (rows): the sum of |v|^q over the weights that are not active */
    float *memory;                    /* for 2 NEAR numbers, or for two rows with LANES more each */
    float lr, q, momentum, weight_decay, gain_lr;
    int nesterov, trains_gain;
    int together;                     /* the rows of a block */
} Step;

/* Return the bits of the largest magnitude. Magnitudes have the order of their bits. Infinities and NaN come last. */
INLINE int32_t largest_of(int64_t n, const float *x)
{
    int32_t bits, most = 0;
    for (int64_t k = 0; k < n; k++) {
        memcpy(&bits, x + k, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

INLINE int bounded(int32_t bits) { return bits < 0x7f800000; }

typedef struct {
    int64_t start;         /* its first entry in matrices of (rows, fan-in) */
    int64_t n, padded;     /* the number of its updated weights, and the same rounded up to a multiple of LANES */
    const int32_t *places; /* their columns if only some are updated */
    float *d, *x;          /* memory for `padded` numbers each */
} Row;

INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

INLINE int rows_together(int64_t fan_in)
{
    const int64_t fit = NEAR / padded(fan_in);
    return fit < 1 ? 1 : fit > BLOCK ? BLOCK : (int)fit;
}

/* Return row `first + k`, which has the number k in its block. */
INLINE Row row_at(const Step *s, int64_t first, int k)
{
    const int64_t row = first + k, width = padded(s->fan_in);
    Row r = {row * s->fan_in, s->fan_in, width, NULL, s->memory + k * width, NULL};
    r.x = r.d + s->together * width;
    if (s->starts) {
        r.n = s->starts[row + 1] - s->starts[row];
        r.padded = padded(r.n);
        r.places = r.n ? s->places + s->starts[row] : NULL;
    }
    return r;
}

INLINE void pad(float *x, const Row *r)
{
    for (int64_t k = r->n; k < r->padded; k++) x[k] = 0;
}

/* Write the gradient of the row into d. Return its product with the parameter, which gives the gradient of the gain. */
INLINE float take_gradient(const Step *s, const Row *r)
{
    const float *const grad = s->grad + r->start, *const param = s->param + r->start;
    float *const d = r->d, dot = 0;
    if (s->starts) {
        for (int64_t k = 0; k < r->n; k++) d[k] = grad[r->places[k]];
        if (s->trains_gain)
            for (int64_t k = 0; k < r->n; k++) dot += d[k] * param[r->places[k]];
        return dot;
    }
    if (s->mask) {
        const float *const mask = s->mask + r->start;
#pragma omp simd
        for (int64_t k = 0; k < r->n; k++) d[k] = grad[k] * mask[k];
    } else {
        memcpy(d, grad, r->n * sizeof(float));
    }
    if (s->trains_gain) {
        for (int64_t k = 0; k < r->n; k++) dot += d[k] * param[k];
    }
    return dot;
}

/* Replace the gradient in d by the direction after momentum. */
INLINE void add_momentum(const Step *s, const Row *r)
{
    const float momentum = s->momentum, seen = s->nesterov ? 1.0f : 0.0f, ahead = s->nesterov ? momentum : 1.0f;
    float *const buffer = s->buffer + r->start, *const d = r->d;
    if (s->starts) {
        for (int64_t k = 0; k < r->n; k++) {
            const float after = momentum * buffer[r->places[k]] + d[k];
            buffer[r->places[k]] = after;
            d[k] = seen * d[k] + ahead * after;
        }
        return;
    }
#pragma omp simd
    for (int64_t k = 0; k < r->n; k++) {
        const float after = momentum * buffer[k] + d[k];
        buffer[k] = after;
        d[k] = seen * d[k] + ahead * after;
    }
}

/* Compute the sum of |d/largest|^q, which is in [1, n] unless d = 0, and 1/largest. Return 0 if d is not finite. */
INLINE int measure(const Row *r, float q, float *inverse, float *total)
{
    const float *const d = r->d;
    const int32_t bits = largest_of(r->n, d);
    float largest, sum = 0;
    memcpy(&largest, &bits, 4);
    const float scale = 1.0f / larger(largest, SMALLEST_GRADIENT);
    for (int64_t k = 0; k < r->padded; k++) sum += power_of(magnitude(d[k]) * scale, q);
    *inverse = scale, *total = sum;
    return bounded(bits);
}

/* Write v moved by `rate` along d into x, and x |x|^(q-2), which is w before scaling, into d. Return the sum of |x|^q,
 * computed as x x |x|^(q-2). */
INLINE float advance(const Step *s, const Row *r, float rate)
{
    const float *const v = s->v + r->start, q = s->q;
    float *const d = r->d, *const x = r->x, powers = 0;
    if (s->starts) {
        for (int64_t k = 0; k < r->n; k++) x[k] = v[r->places[k]];
    } else {
        memcpy(x, v, r->n * sizeof(float));
    }
    pad(x, r);
    for (int64_t k = 0; k < r->padded; k++) {
        x[k] += rate * d[k];
        d[k] = x[k] * power_of(magnitude(x[k]), q - 2.0f);
        powers += x[k] * d[k];
    }
    return powers;
}

/* Make SGD's step for the gain of a row. Return the gain. */
INLINE float descend_gain(const Step *s, int64_t row, float dot)
{
    float d = dot / s->gain[row] + s->weight_decay * s->gain[row];
    if (s->gain_buffer) {
        const float after = s->gain_buffer[row] = s->momentum * s->gain_buffer[row] + d;
        d = s->nesterov ? d + s->momentum * after : after;
    }
    return s->gain[row] = larger(s->gain[row] - s->gain_lr * d, GAIN_MIN);
}

/* Write v and the parameter from x and d. */
INLINE void put(const Step *s, const Row *r, float norm, float scale)
{
    const float *const x = r->x, *const u = r->d;
    float *const v = s->v + r->start, *const param = s->param + r->start;
    if (s->starts) {
#pragma omp simd
        for (int64_t k = 0; k < s->fan_in; k++) v[k] *= norm; /* the factor of the row also applies to masked weights */
        for (int64_t k = 0; k < r->n; k++) {
            v[r->places[k]] = x[k] * norm;
            param[r->places[k]] = u[k] * scale;
        }
    } else if (s->mask) {
        const float *const mask = s->mask + r->start;
#pragma omp simd
        for (int64_t k = 0; k < r->n; k++) {
            v[k] = x[k] * norm;
            param[k] = u[k] * scale * mask[k];
        }
    } else {
#pragma omp simd
        for (int64_t k = 0; k < r->n; k++) {
            v[k] = x[k] * norm;
            param[k] = u[k] * scale;
        }
    }
}

/* Make the step of some rows: v <- v - lr/(1 - lr) d/||d||_q, normalised; gain by SGD; param <- gain sign(v)|v|^(q-1).
 * If momentum makes d infinite, return 0 and leave v and the parameter unchanged. */
INLINE int step_block(const Step *s, int64_t first, int rows)
{
    float dots[BLOCK], inverse[BLOCK] = {0}, total[BLOCK] = {0}, rate[BLOCK], powers[BLOCK] = {0}, norm[BLOCK], scale[BLOCK];
    int good = 1;
    for (int k = 0; k < rows; k++) {
        const Row r = row_at(s, first, k);
        dots[k] = take_gradient(s, &r);
        if (s->buffer) add_momentum(s, &r);
        pad(r.d, &r);
        good &= measure(&r, s->q, &inverse[k], &total[k]);
    }
    if (!good) return 0;
#pragma omp simd
    for (int k = 0; k < BLOCK; k++)
        rate[k] = -s->lr / (1.0f - s->lr) * inverse[k] * exp2_of(-log2_of(larger(total[k], 1.0f)) / s->q);
    for (int k = 0; k < rows; k++) {
        const Row r = row_at(s, first, k);
        powers[k] = advance(s, &r, rate[k]);
        if (s->latent) powers[k] += s->latent[first + k];
    }
#pragma omp simd
    for (int k = 0; k < BLOCK; k++) {
        powers[k] = larger(powers[k], NO_NORM);
        norm[k] = exp2_of(-log2_of(powers[k]) / s->q);
        scale[k] = exp2_of((1.0f / s->q - 1.0f) * log2_of(powers[k]));
    }
    for (int k = 0; k < rows; k++) {
        const Row r = row_at(s, first, k);
        if (s->latent) s->latent[first + k] /= powers[k]; /* its value after the normalisation of the row */
        put(s, &r, norm[k], scale[k] * (s->trains_gain ? descend_gain(s, first + k, dots[k]) : s->gain[first + k]));
    }
    return 1;
}

/* Return 0 if the gradient or the momentum is not finite. If it is the gradient, nothing changes. */
FOR_EACH_PROCESSOR
static int step(const Step *s)
{
    if (!bounded(largest_of(s->rows * s->fan_in, s->grad))) return 0;
    for (int64_t row = 0; row < s->rows; row += s->together) {
        const int64_t left = s->rows - row;
        if (!step_block(s, row, left < s->together ? (int)left : s->together)) return 0;
    }
    return 1;
}

FOR_EACH_PROCESSOR
static void sum_masked(int64_t rows, int64_t fan_in, const float *v, const float *mask, float q, float *latent)
{
    for (int64_t row = 0; row < rows; row++, v += fan_in, mask += fan_in) {
        float total = 0;
        for (int64_t k = 0; k < fan_in; k++) total += (mask[k] == 0 ? 1.0f : 0.0f) * power_of(magnitude(v[k]), q);
        latent[row] = total;
    }
}

/* Make the step of torch.optim.SGD. If the gradient is not finite, return 0 and change nothing. */
FOR_EACH_PROCESSOR
static int descend(int64_t n, const float *grad, float *param, float *buffer, float lr, float momentum, int nesterov,
                   float weight_decay)
{
    if (!bounded(largest_of(n, grad))) return 0;
    if (!buffer) {
#pragma omp simd
        for (int64_t k = 0; k < n; k++) param[k] -= lr * (grad[k] + weight_decay * param[k]);
        return 1;
    }
    const float seen = nesterov ? 1.0f : 0.0f, ahead = nesterov ? momentum : 1.0f;
#pragma omp simd
    for (int64_t k = 0; k < n; k++) {
        const float d = grad[k] + weight_decay * param[k];
        buffer[k] = momentum * buffer[k] + d;
        param[k] -= lr * (seen * d + ahead * buffer[k]);
    }
    return 1;
}

/* Read the arguments in order, as numbers and addresses. An address of 0 stands for a missing array. */
static int64_t whole(PyObject *const **arguments) { return PyLong_AsLongLong(*(*arguments)++); }
static void *address(PyObject *const **arguments) { return PyLong_AsVoidPtr(*(*arguments)++); }
static float number(PyObject *const **arguments) { return (float)PyFloat_AsDouble(*(*arguments)++); }

static int has(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments are wanted, got %zd", wanted, given);
    return given == wanted;
}

static PyObject *call_step(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!has(given, 20)) return NULL;
    PyObject *const **a = &arguments;
    Step s;
    s.rows = whole(a), s.fan_in = whole(a), s.together = rows_together(s.fan_in);
    s.grad = address(a), s.param = address(a), s.v = address(a), s.buffer = address(a);
    s.gain = address(a), s.gain_buffer = address(a), s.mask = address(a);
    s.places = address(a), s.starts = address(a), s.latent = address(a);
    s.memory = address(a);
    s.lr = number(a), s.q = number(a), s.momentum = number(a), s.nesterov = (int)whole(a);
    s.weight_decay = number(a), s.gain_lr = number(a), s.trains_gain = (int)whole(a);
    if (PyErr_Occurred()) return NULL;
    int done;
    Py_BEGIN_ALLOW_THREADS;
    const unsigned before = subnormals_away();
    done = step(&s);
    restore(before);
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(done);
}

static PyObject *call_sum_masked(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!has(given, 6)) return NULL;
    PyObject *const **a = &arguments;
    const int64_t rows = whole(a), fan_in = whole(a);
    const float *v = address(a), *mask = address(a);
    const float q = number(a);
    float *latent = address(a);
    if (PyErr_Occurred()) return NULL;
    sum_masked(rows, fan_in, v, mask, q, latent);
    Py_RETURN_NONE;
}

static PyObject *call_descend(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!has(given, 8)) return NULL;
    PyObject *const **a = &arguments;
    const int64_t n = whole(a);
    const float *grad = address(a);
    float *param = address(a), *buffer = address(a);
    const float lr = number(a), momentum = number(a);
    const int nesterov = (int)whole(a);
    const float weight_decay = number(a);
    if (PyErr_Occurred()) return NULL;
    const unsigned before = subnormals_away();
    const int done = descend(n, grad, param, buffer, lr, momentum, nesterov, weight_decay);
    restore(before);
    return PyBool_FromLong(done);
}

PyObject *call_multiply_signs(PyObject *self, PyObject *const *arguments, Py_ssize_t given); /* of popcount.c */

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))call_step, METH_FASTCALL, NULL},
    {"sum_masked", (PyCFunction)(void (*)(void))call_sum_masked, METH_FASTCALL, NULL},
    {"descend", (PyCFunction)(void (*)(void))call_descend, METH_FASTCALL, NULL},
    {"multiply_signs", (PyCFunction)(void (*)(void))call_multiply_signs, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void)
{
    PyObject *const made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "NEAR", NEAR) || PyModule_AddIntConstant(made, "LANES", LANES))) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
