"""Settings of a process that is there to embed: not for a library to make."""

import ctypes
import os
import sys

import jax

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 512 << 20


def prepare() -> None:
    """Keeps compiled programs on disk and, where a CPU computes, memory."""
    _keep_programs()
    # A GPU computes in its own memory; the many threads that compile for it would wait
    # for each other.
    if jax.default_backend() == "cpu":
        _keep_memory()


def _keep_programs() -> None:
    """The next start need not compile them."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(home, "prottrans_jax", "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


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
