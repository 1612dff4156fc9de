"""Shared fixtures. Data outside the repository is used where present, never required."""

import os
import pathlib

# Before anything imports jax: tests never take an accelerator, and see 8 CPU devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data and parity oracles beside the checkout."""
    path = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}: this test compares with files there")
    return path
