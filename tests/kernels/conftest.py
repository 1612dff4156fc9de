"""Fixtures that the tests of `layers.x86` share."""

import jax
import pytest

from prottrans_jax.kernels import x86

_UNITS = x86.units()


@pytest.fixture(params=_UNITS or ("none",))
def x86_unit(request, monkeypatch):
    """Each that this machine has, as if it had no other."""
    if request.param != "none":
        monkeypatch.setattr(x86, "units", lambda: (request.param,))
    if len(_UNITS) > 1:
        jax.clear_caches()  # Programs know their unit.
    return request.param
