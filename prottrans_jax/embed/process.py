"""Process-wide settings of the command. A library must not change them."""

import ctypes
import os
import sys

import jax

from prottrans_jax.files import paths

# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 512 << 20


def prepare() -> None:
    """Caches programs on disk; keeps freed memory (CPU) or fixes matmul kernels (GPU).

    Call it before JAX initialises its devices.
    """
    _keep_programs()
    if _has_gpu():
        _keep_products()
    else:
        _keep_memory()


def _has_gpu() -> bool:
    # Asking JAX would start its threads.
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms != "cpu" and os.path.exists("/dev/nvidiactl")


def _keep_programs() -> None:
    """Caches compiled programs on disk for the next start."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = paths.cache_home() / "prottrans_jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _keep_products() -> None:
    """Uses cuBLAS's default kernels instead of XLA's autotuning.

    Autotuning may choose other kernels in each run, which changes the vectors. Without
    it ProtT5 takes up to 9 % more time on an H200, and a program 1.8 s to compile
    instead of 3.3.
    """
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"


def _keep_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    By default glibc returns blocks over 32 MiB at once, and threads other than the
    first have heaps of 64 MiB at most. A layer of 1,024 tokens needs more, and its page
    faults take 5 to 20 % of the time on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Not in every C library.
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
