/* Compute the steps of spiking neurons over time, in float32 on a CPU. scan.py has the same computation in torch.
 *
 * All arrays are contiguous, with the shape (examples, steps, neurons) or (neurons). Only scan.py calls this file, and
 * it guarantees that every address is valid. Both files use the same operations in the same order, and the compiler
 * must not contract them: a difference in the last bit of a potential can decide whether the neuron spikes.
 */

#define Py_LIMITED_API 0x030B0000 /* one file for every Python from 3.11 on */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

typedef struct {
    int64_t examples, steps, neurons;
} Shape;

FOR_EACH_PROCESSOR
static void forward(Shape shape, const float *current, const float *v, const float *km, const float *ks, float *u, float *s,
                    float *a)
{
    const int64_t n = shape.neurons;
    for (int64_t row = 0; row < shape.examples * shape.steps; row++, current += n, u += n, s += n, a += n) {
        if (row % shape.steps == 0) {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                u[k] = current[k];
                s[k] = u[k] >= 1.0f ? 1.0f : 0.0f;
                a[k] = ks[k] * s[k];
            }
            continue;
        }
        const float *const u1 = u - n, *const s1 = s - n, *const a1 = a - n; /* of the step before */
#pragma omp simd
        for (int64_t k = 0; k < n; k++) {
            const float now = (1.0f - km[k]) * (u1[k] * (1.0f - s1[k])) + (current[k] + v[k] * a1[k]);
            const float spike = now >= 1.0f ? 1.0f : 0.0f;
            u[k] = now;
            s[k] = spike;
            a[k] = (1.0f - ks[k]) * a1[k] + ks[k] * spike;
        }
    }
}

typedef struct {
    const float *grad_a, *grad_s; /* or null */
    const float *u, *s, *a, *surrogate;
    const float *v, *km, *ks;
    float *grad_current, *grad_v, *grad_km, *grad_ks;
    float *memory; /* of three times the neurons */
} Backward;

FOR_EACH_PROCESSOR
static void backward(Shape shape, Backward b)
{
    const int64_t n = shape.neurons;
    float *const ga = b.memory, *const gu = ga + n, *const gr = gu + n;
    for (int64_t example = 0; example < shape.examples; example++) {
        memset(b.memory, 0, 3 * n * sizeof(float));
        for (int64_t t = shape.steps - 1; t >= 0; t--) {
            const int64_t row = (example * shape.steps + t) * n;
            const float *const u1 = b.u + row - n, *const s1 = b.s + row - n, *const a1 = b.a + row - n;
            const float *const s = b.s + row, *const surrogate = b.surrogate + row;
            float *const found = b.grad_current + row;
            if (b.grad_a) {
#pragma omp simd
                for (int64_t k = 0; k < n; k++) ga[k] += b.grad_a[row + k];
            }
            if (b.grad_s) {
#pragma omp simd
                for (int64_t k = 0; k < n; k++) gr[k] += b.grad_s[row + k];
            }
            if (t == 0) {
#pragma omp simd
                for (int64_t k = 0; k < n; k++) {
                    found[k] = (ga[k] * b.ks[k] + gr[k]) * surrogate[k] + gu[k];
                    b.grad_ks[k] += ga[k] * s[k];
                }
                continue;
            }
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                const float g = (ga[k] * b.ks[k] + gr[k]) * surrogate[k] + gu[k];
                const float stays = 1.0f - s1[k], back = g * (1.0f - b.km[k]);
                found[k] = g;
                b.grad_v[k] += g * a1[k];
                b.grad_km[k] -= g * (u1[k] * stays);
                b.grad_ks[k] += ga[k] * (s[k] - a1[k]);
                gu[k] = back * stays;
                gr[k] = -back * u1[k];
                ga[k] = ga[k] * (1.0f - b.ks[k]) + g * b.v[k];
            }
        }
    }
}

/* Read the arguments in order, as numbers and addresses. An address of 0 stands for a missing array. */
static int64_t whole(PyObject *const **arguments) { return PyLong_AsLongLong(*(*arguments)++); }
static void *address(PyObject *const **arguments) { return PyLong_AsVoidPtr(*(*arguments)++); }

static Shape shape_of(PyObject *const **a)
{
    Shape shape;
    shape.examples = whole(a), shape.steps = whole(a), shape.neurons = whole(a);
    return shape;
}

static int has(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments are wanted, got %zd", wanted, given);
    return given == wanted;
}

static PyObject *call_forward(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!has(given, 10)) return NULL;
    PyObject *const **a = &arguments;
    const Shape shape = shape_of(a);
    const float *current = address(a), *v = address(a), *km = address(a), *ks = address(a);
    float *u = address(a), *s = address(a), *traces = address(a);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    forward(shape, current, v, km, ks, u, s, traces);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *call_backward(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!has(given, 17)) return NULL;
    PyObject *const **a = &arguments;
    const Shape shape = shape_of(a);
    Backward b;
    b.grad_a = address(a), b.grad_s = address(a);
    b.u = address(a), b.s = address(a), b.a = address(a), b.surrogate = address(a);
    b.v = address(a), b.km = address(a), b.ks = address(a);
    b.grad_current = address(a), b.grad_v = address(a), b.grad_km = address(a), b.grad_ks = address(a);
    b.memory = address(a);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    backward(shape, b);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))call_forward, METH_FASTCALL, NULL},
    {"backward", (PyCFunction)(void (*)(void))call_backward, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__scan(void) { return PyModule_Create(&module); }
