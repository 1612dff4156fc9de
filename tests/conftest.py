"""Shared fixtures. Data outside the repository is used if present, never required."""

import os
import pathlib
import tempfile

# Before anything imports jax: tests never take an accelerator, and see 8 CPU devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Or virtual devices may run their collectives in different orders and hang.
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    # Most of a test's time is compilation.
    + " --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile the same tiny programs again and again, subprocesses included.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"prottrans_jax_test_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

from absl import logging
import pytest

from cases import stores


@pytest.fixture(autouse=True)
def log_level():
    """Commands run in this process set it; the next test must see its own log."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data and parity oracles beside the checkout."""
    path = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}: this test compares with files there")
    return path


@pytest.fixture(params=stores.KINDS)
def store(request, tmp_path) -> str:
    """An unused folder on this machine, in a bucket of Google's and of S3."""
    return stores.fresh(request.param, tmp_path)


@pytest.fixture(params=stores.BUCKETS)
def bucket(request, tmp_path) -> str:
    """An unused folder in a bucket of Google's and of S3."""
    return stores.fresh(request.param, tmp_path)


@pytest.fixture
def faults(bucket):
    """The proxy in front of the bucket's emulator; its faults end with the test."""
    proxy = stores.proxy(bucket.partition("://")[0])
    proxy.clear()
    yield proxy
    proxy.clear()
