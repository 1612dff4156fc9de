"""Fixtures shared by the tests of `kernels.x86`."""

import jax
import pytest

from prottrans_jax.kernels import x86

_UNITS = x86.units()


@pytest.fixture(params=_UNITS or ("none",))
def x86_unit(request, monkeypatch):
    """Each unit of this machine, with the other one hidden."""
    if request.param != "none":
        monkeypatch.setattr(x86, "units", lambda: (request.param,))
    if len(_UNITS) > 1:
        jax.clear_caches()  # Programs know their unit.
    return request.param
