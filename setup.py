"""The one part of the package that is compiled; all else is in pyproject.toml.

A machine without a C compiler installs the package without it, and steps with torch's operations; `make compile` says
that it must be there.
"""

import os

from setuptools import Extension, setup

# Sums may be taken in any order: else none of them is taken in many lanes at once.
FLAGS = ["-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno", "-fno-signed-zeros", "-fassociative-math"]

setup(
    ext_modules=[
        Extension(
            "tune_sparsity.sparsity.optim._kernel",
            [f"src/tune_sparsity/sparsity/optim/{name}.c" for name in ("kernel", "popcount")],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional="MUST_COMPILE" not in os.environ,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one file for every Python from 3.11 on
)
