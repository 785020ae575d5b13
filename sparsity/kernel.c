/* A step of LpSGD on a CPU in float32, row by row: what sparsity/block.py does in some thirty passes over all weights.
 *
 * A row is brought into the processor's nearest cache once to find how far it is to be moved, and once to be moved; only
 * its active weights are, where most are masked. Called by sparsity/fused.py alone, which answers for every address.
 * Powers are exp2(a log2 x) of values cut off from below, as in sparsity/rows.py. No call of this file depends on
 * another, and none waits or allocates.
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

static const float SMALLEST_GRADIENT = 1e-38f; /* keeps 1/largest finite; smaller gradients are as good as none */
static const float LOWEST = -106.0f;           /* powers are cut off at 2^LOWEST: none is ever subnormal */
static const float NO_NORM = 1e-30f;           /* a smaller sum of |v|^q is that of a row of zeros */
static const float GAIN_MIN = 1e-6f;           /* a gain at zero would silence its neuron for good */

INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }
INLINE float magnitude(float x) { return __builtin_fabsf(x); }

/* log2 of a normal x > 0: of its exponent, and of its mantissa m in [sqrt(1/2), sqrt(2)) as (m - 1) P(m - 1). P is the
 * interpolation of log2(1 + t)/t in Chebyshev's nodes, to 4e-9 of its value. */
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

/* 2^x for x in [-126, 127]: of the nearest whole number in the exponent's bits, and of the rest f as 1 + f P(f). */
INLINE float exp2_of(float x)
{
    const float shift = 12582912.0f; /* 1.5 2^23: adding it rounds to whole numbers */
    const float rounded = x + shift;
    const float f = x - (rounded - shift);
    int32_t whole, zero, bits;
    memcpy(&whole, &rounded, 4);
    memcpy(&zero, &shift, 4);
    float sum = 0.000154614478f;
    sum = sum * f + 0.00133908668f;
    sum = sum * f + 0.00961805694f;
    sum = sum * f + 0.0555035695f;
    sum = sum * f + 0.240226507f;
    sum = sum * f + 0.693147182f;
    sum = 1.0f + f * sum;
    memcpy(&bits, &sum, 4);
    bits += (whole - zero) * (1 << 23);
    memcpy(&sum, &bits, 4);
    return sum;
}

/* x^exponent for x >= 0, of which 0 counts as the smallest normal number. */
INLINE float power_of(float x, float exponent)
{
    return exp2_of(smaller(larger(exponent * log2_of(larger(x, FLT_MIN)), LOWEST), 127.0f));
}

typedef struct {
    int64_t rows, fan_in;
    float *grad, *param, *v, *buffer;   /* (rows, fan-in); no buffer without momentum */
    float *gain, *gain_buffer;          /* (rows), or none */
    float *mask;                        /* (rows, fan-in) of zeros and ones, or none */
    int32_t *places;                    /* the columns of the active weights, row after row, of which there may be 0 */
    int64_t *starts;                    /* (rows + 1): where each row's places begin; none: all weights are stepped */
    float *latent;                      /* (rows): the sum of |v|^q over the weights that are not active */
    float *d;                           /* memory for one number a place */
    float *rates, *dots;                /* memory for one number a row */
    float *x, *u;                       /* memory for one row */
    float lr, q, momentum, weight_decay, gain_lr;
    int nesterov;
} Step;

typedef struct {
    int64_t start;         /* its first entry in matrices of (rows, fan-in) */
    int64_t at, n;         /* its first entry in d, and how many of its weights are stepped */
    const int32_t *places; /* their columns, where only some are */
} Row;

INLINE Row row_at(const Step *s, int64_t row)
{
    const int64_t start = row * s->fan_in;
    if (!s->starts) return (Row){start, start, s->fan_in, NULL};
    const int64_t at = s->starts[row], n = s->starts[row + 1] - at;
    return (Row){start, at, n, n ? s->places + at : NULL};
}

/* The gradient after momentum, d, and how far each row is to move along it; the row whose gradient is not finite, or
 * -1. Of gains and weights nothing is changed. */
FOR_EACH_PROCESSOR
static int64_t find_directions(const Step *s)
{
    const float momentum = s->momentum, q = s->q;
    for (int64_t row = 0; row < s->rows; row++) {
        const Row here = row_at(s, row);
        const int few = s->starts != NULL;
        const int64_t start = here.start, at = here.at, n = here.n;
        const int32_t *const places = here.places;
        const float *const grad = s->grad + start, *const param = s->param + start;
        float *const d = s->d + at, dot = 0, largest = 0, wrong = 0, total = 0;

        if (few) {
            for (int64_t k = 0; k < n; k++) d[k] = grad[places[k]];
            if (s->gain)
                for (int64_t k = 0; k < n; k++) dot += d[k] * param[places[k]];
        } else {
            if (s->mask) {
                const float *const mask = s->mask + start;
#pragma omp simd
                for (int64_t k = 0; k < n; k++) d[k] = grad[k] * mask[k];
            } else {
                memcpy(d, grad, n * sizeof(float));
            }
            if (s->gain) {
#pragma omp simd reduction(+ : dot)
                for (int64_t k = 0; k < n; k++) dot += d[k] * param[k];
            }
        }
        s->dots[row] = dot;

        if (s->buffer) {
            float *const buffer = s->buffer + start;
            if (few) {
                for (int64_t k = 0; k < n; k++) {
                    const float after = momentum * buffer[places[k]] + d[k];
                    buffer[places[k]] = after;
                    d[k] = s->nesterov ? d[k] + momentum * after : after;
                }
            } else {
                const float seen = s->nesterov ? 1.0f : 0.0f, ahead = s->nesterov ? momentum : 1.0f;
#pragma omp simd
                for (int64_t k = 0; k < n; k++) {
                    const float after = momentum * buffer[k] + d[k];
                    buffer[k] = after;
                    d[k] = seen * d[k] + ahead * after;
                }
            }
        }

#pragma omp simd reduction(max : largest) reduction(+ : wrong)
        for (int64_t k = 0; k < n; k++) {
            largest = larger(magnitude(d[k]), largest);
            wrong += d[k] * 0.0f;
        }
        if (wrong != 0) return row; /* NaN, of NaN and of an infinity */
        const float inverse = 1.0f / larger(largest, SMALLEST_GRADIENT);
#pragma omp simd reduction(+ : total)
        for (int64_t k = 0; k < n; k++) total += power_of(magnitude(d[k]) * inverse, q);
        /* total = ||d/largest||_q^q lies in [1, n], but for d = 0. */
        s->rates[row] = -s->lr / (1.0f - s->lr) * inverse * exp2_of(-log2_of(larger(total, 1.0f)) / q);
    }
    return -1;
}

/* v <- v - lr/(1 - lr) d/||d||_q, normalised; gain by SGD; param <- gain sign(v)|v|^(q-1). With r = |v|^(q-2), v r is w
 * before it is scaled, and |v|^q = v (v r), so one power serves norm and weights. */
FOR_EACH_PROCESSOR
static void move(const Step *s)
{
    const float q = s->q;
    float *const x = s->x, *const u = s->u;
    for (int64_t row = 0; row < s->rows; row++) {
        const Row here = row_at(s, row);
        const int few = s->starts != NULL;
        const int64_t start = here.start, at = here.at, n = here.n;
        const int32_t *const places = here.places;
        const float *const d = s->d + at, rate = s->rates[row];
        float *const v = s->v + start, *const param = s->param + start, powers = 0;

        if (few) {
            for (int64_t k = 0; k < n; k++) x[k] = v[places[k]];
        } else {
            memcpy(x, v, n * sizeof(float));
        }
#pragma omp simd reduction(+ : powers)
        for (int64_t k = 0; k < n; k++) {
            x[k] += rate * d[k];
            u[k] = x[k] * power_of(magnitude(x[k]), q - 2.0f);
            powers += x[k] * u[k];
        }
        if (s->latent) {
            powers = larger(powers + s->latent[row], NO_NORM);
            s->latent[row] /= powers; /* as it is when the row has norm 1 again */
        }
        const float log_powers = log2_of(larger(powers, NO_NORM));
        const float norm = exp2_of(-log_powers / q);
        float scale = exp2_of((1.0f / q - 1.0f) * log_powers);

        if (s->gain) {
            float d_gain = s->dots[row] / s->gain[row] + s->weight_decay * s->gain[row];
            if (s->gain_buffer) {
                const float after = s->gain_buffer[row] = s->momentum * s->gain_buffer[row] + d_gain;
                d_gain = s->nesterov ? d_gain + s->momentum * after : after;
            }
            s->gain[row] = larger(s->gain[row] - s->gain_lr * d_gain, GAIN_MIN);
            scale *= s->gain[row];
        }

        if (few) {
#pragma omp simd
            for (int64_t k = 0; k < s->fan_in; k++) v[k] *= norm; /* masked weights share in their row's factor */
            for (int64_t k = 0; k < n; k++) {
                v[places[k]] = x[k] * norm;
                param[places[k]] = u[k] * scale;
            }
        } else if (s->mask) {
            const float *const mask = s->mask + start;
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                v[k] = x[k] * norm;
                param[k] = u[k] * scale * mask[k];
            }
        } else {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                v[k] = x[k] * norm;
                param[k] = u[k] * scale;
            }
        }
    }
}

FOR_EACH_PROCESSOR
static void sum_masked(int64_t rows, int64_t fan_in, const float *v, const float *mask, float q, float *latent)
{
    for (int64_t row = 0; row < rows; row++, v += fan_in, mask += fan_in) {
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t k = 0; k < fan_in; k++) total += (mask[k] == 0 ? 1.0f : 0.0f) * power_of(magnitude(v[k]), q);
        latent[row] = total;
    }
}

/* torch.optim.SGD's step; 0 and nothing changed if the gradient is not finite. */
FOR_EACH_PROCESSOR
static int descend(int64_t n, const float *grad, float *param, float *buffer, float lr, float momentum, int nesterov,
                   float weight_decay)
{
    float wrong = 0;
#pragma omp simd reduction(+ : wrong)
    for (int64_t k = 0; k < n; k++) wrong += grad[k] * 0.0f;
    if (wrong != 0) return 0;
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

/* The arguments in order, as numbers and addresses; an address of 0 for what there is none of. */
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
    if (!has(given, 21)) return NULL;
    PyObject *const **a = &arguments;
    Step s;
    s.rows = whole(a), s.fan_in = whole(a);
    s.grad = address(a), s.param = address(a), s.v = address(a), s.buffer = address(a);
    s.gain = address(a), s.gain_buffer = address(a), s.mask = address(a);
    s.places = address(a), s.starts = address(a), s.latent = address(a);
    s.d = address(a), s.rates = address(a), s.x = address(a);
    s.dots = s.rates + s.rows, s.u = s.x + s.fan_in;
    s.lr = number(a), s.q = number(a), s.momentum = number(a), s.nesterov = (int)whole(a);
    s.weight_decay = number(a), s.gain_lr = number(a);
    if (PyErr_Occurred()) return NULL;
    int64_t bad;
    Py_BEGIN_ALLOW_THREADS;
    bad = find_directions(&s);
    if (bad < 0) move(&s);
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(bad < 0);
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
    return PyBool_FromLong(descend(n, grad, param, buffer, lr, momentum, nesterov, weight_decay));
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))call_step, METH_FASTCALL, NULL},
    {"sum_masked", (PyCFunction)(void (*)(void))call_sum_masked, METH_FASTCALL, NULL},
    {"descend", (PyCFunction)(void (*)(void))call_descend, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
