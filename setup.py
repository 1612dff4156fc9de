"""What setup.cfg cannot say: the one part of the package that is compiled.

Where it cannot be (no compiler, another kind of CPU), the package works without it.
"""

import hashlib
import pathlib
import platform
import sys

import setuptools


def extensions() -> list[setuptools.Extension]:
    """For Linux on x86-64, if JAX's headers are there."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    try:
        import jax
    except ImportError:
        return []
    source = "prottrans_jax/kernels/_x86.cc"
    digest = hashlib.sha256(pathlib.Path(source).read_bytes()).hexdigest()
    return [
        setuptools.Extension(
            "prottrans_jax.kernels._x86",
            [source],
            define_macros=[("SOURCE_SHA256", f'"{digest}"')],
            include_dirs=[jax.ffi.include_dir()],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden"],
            optional=True,
        )
    ]


setuptools.setup(ext_modules=extensions())
