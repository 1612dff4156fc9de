"""Process settings of the command: program cache and memory."""

import os
import platform
import subprocess
import sys

import pytest

from prottrans_jax.embed import process


def run(script, **environment):
    unset = {"JAX_COMPILATION_CACHE_DIR", "MALLOC_MMAP_THRESHOLD_"}
    kept = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_reused_by_any_thread():
    script = """
import resource, threading
import numpy as np
from prottrans_jax.embed import process

KEEP
faults = []

def work():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(96 << 18, np.float32)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults[-1])
"""
    prepared = script.replace("KEEP", "process.prepare()")
    assert int(run(prepared, JAX_PLATFORMS="cpu")) < 10
    # As it is otherwise: 96 MiB in pages of 4 KiB, or of 2 MiB.
    assert int(run(script.replace("KEEP", ""))) >= 48


def test_gpu_autotuning_is_off_and_jax_is_not_initialised(monkeypatch):
    user_flags = "--xla_cpu_enable_fast_math=false"
    script = """
import os
from jax._src import xla_bridge
from prottrans_jax.embed import process

process._has_gpu = lambda: GPU
process.prepare()
assert not xla_bridge.backends_are_initialized()
print(os.environ["XLA_FLAGS"])
import jax
jax.numpy.zeros(3)  # XLA knows the flags.
"""
    flags = run(script.replace("GPU", "True"), XLA_FLAGS=user_flags)
    assert "--xla_gpu_autotune_level=0" in flags and flags.split()[-1] == user_flags
    assert run(script.replace("GPU", "False"), XLA_FLAGS=user_flags).split() == [
        user_flags
    ]
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not process._has_gpu()
    monkeypatch.delenv("JAX_PLATFORMS")
    assert process._has_gpu()


def test_programs_are_found_by_the_next_process(tmp_path):
    script = """
import jax, jax.numpy as jnp
from prottrans_jax.embed import process

process.prepare()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.tanh(x) + 1)(jnp.arange(5.0)).sum())
"""
    first = run(script, XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "prottrans_jax" / "programs"
    files = set(os.listdir(folder))
    assert files
    assert run(script, XDG_CACHE_HOME=str(tmp_path)) == first
    assert {name for name in os.listdir(folder) if name.endswith("cache")} <= files


def test_cache_folder_set_by_the_user_is_kept(monkeypatch):
    import jax

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    before = jax.config.jax_compilation_cache_dir
    process._keep_programs()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_peak_memory_excludes_the_parent_process():
    held = bytes(range(256)) * (1 << 20)  # 256 MiB: more than the child's imports.
    peak = run(
        "from prottrans_jax.embed import reports\nprint(reports.peak_memory_bytes())"
    )
    assert 10 << 20 < int(peak) < len(held)
