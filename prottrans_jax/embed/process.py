"""Settings of a process that is there to embed: not for a library to make."""

import ctypes
import os
import sys

import jax

from prottrans_jax.files import paths

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 512 << 20


def prepare() -> None:
    """Keeps compiled programs on disk; memory on a CPU, the same products on a GPU.

    To be called before JAX looks for devices.
    """
    _keep_programs()
    if _has_gpu():
        _keep_products()
    else:
        _keep_memory()


def _has_gpu() -> bool:
    # Not by asking JAX: that would start its threads.
    wanted = os.environ.get("JAX_PLATFORMS", "")
    return wanted != "cpu" and os.path.exists("/dev/nvidiactl")


def _keep_programs() -> None:
    """The next start need not compile them."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = paths.cache_home() / "prottrans_jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _keep_products() -> None:
    """cuBLAS's own choice of a product, not the fastest of a trial.

    That may differ from run to run, and so would the vectors. ProtT5 takes up to 9 %
    more time on an H200, and a program 1.8 s to compile instead of 3.3.
    """
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"


def _keep_memory() -> None:
    """Freed memory is used again by this process, not given back and cleared anew.

    glibc gives back at once what is larger than 32 MiB, and has 64 MiB at most for
    threads other than the first. A layer of 1,024 tokens needs more: getting it page
    by page takes a CPU 5 to 20 percent of the time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Not in every C library.
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
