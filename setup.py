"""The parts of the package that are compiled; all else is in pyproject.toml.

A machine without a C compiler installs the package without them, and steps with torch's operations; `make compile` says
that they must be there.
"""

import os

from setuptools import Extension, setup

COMMON = ["-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno"]
# The step's sums may be taken in any order: else none of them is taken in many lanes at once.
STEP = [*COMMON, "-fno-signed-zeros", "-fassociative-math"]
# Whether a neuron spikes may hang on a potential's last bit: it is computed as torch does, on every processor.
SCAN = [*COMMON, "-ffp-contract=off"]


def extension(name: str, sources: tuple[str, ...], flags: list[str]) -> Extension:
    return Extension(
        f"tune_sparsity.{name}",
        [f"src/tune_sparsity/{source}" for source in sources],
        extra_compile_args=flags,
        py_limited_api=True,
        optional="MUST_COMPILE" not in os.environ,
    )


setup(
    ext_modules=[
        extension("sparsity.optim._kernel", ("sparsity/optim/kernel.c", "sparsity/optim/popcount.c"), STEP),
        extension("experiments.spiking.neurons._scan", ("experiments/spiking/neurons/scan.c",), SCAN),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one file for every Python from 3.11 on
)
