"""What setup.cfg cannot say: the one part of the package that is compiled.

Where it cannot be (no compiler, another kind of CPU), the package works without it.
"""

import jax
import setuptools

setuptools.setup(
    ext_modules=[
        setuptools.Extension(
            "prottrans_jax.layers._amx",
            ["prottrans_jax/layers/_amx.cc"],
            include_dirs=[jax.ffi.include_dir()],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
