"""What setup.cfg cannot say: the one part of the package that is compiled.

Where it cannot be (no compiler, another kind of CPU), the package works without it;
`prottrans info` says which. And a build never installs modules of an earlier one.
"""

import pathlib
import platform
import runpy
import shutil
import sys

import setuptools
from setuptools.command import build_py

ROOT = pathlib.Path(__file__).resolve().parent


def extensions() -> list[setuptools.Extension]:
    """For Linux on x86-64."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    sources = runpy.run_path(str(ROOT / "prottrans_jax/kernels/x86_sources.py"))
    files = [path.relative_to(ROOT).as_posix() for path in sources["files"]()]
    return [
        setuptools.Extension(
            "prottrans_jax.kernels._x86",
            [file for file in files if file.endswith(".cc")],
            depends=[file for file in files if file.endswith(".h")],
            define_macros=[("SOURCE_SHA256", f'"{sources["digest"]()}"')],
            include_dirs=["prottrans_jax/kernels/x86_cc/third_party"],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden"],
            optional=True,
        )
    ]


class BuildPy(build_py.build_py):
    """Copies the modules into an empty folder.

    build/ in the checkout keeps those that were deleted since the last build.
    """

    def run(self) -> None:
        """Also called for editable installs, whose folder is a new one."""
        shutil.rmtree(pathlib.Path(self.build_lib, "prottrans_jax"), ignore_errors=True)
        super().run()


setuptools.setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy})
