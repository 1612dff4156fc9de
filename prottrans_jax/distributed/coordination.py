"""Keys and values in JAX's coordination service.

Modules of this package use the service instead of collectives: a collective has no
timeout and does not name the process that is missing.
"""

from typing import Any

import jax

_PREFIX = "prottrans_jax"

# Number of calls by name. A key can be written only once, so each call gets its own
# number. All processes make the same calls in the same order, so their numbers agree.
_calls: dict[str, int] = {}


def client() -> Any:
    """Client of JAX's coordination service.

    Raises:
      RuntimeError: this process has not joined a run; see `start.initialize`.
    """
    service_client = jax._src.distributed.global_state.client
    if service_client is None:
        raise RuntimeError("start.initialize has not been called.")
    return service_client


def new_key(name: str) -> str:
    """A key for this call of `name`, the same on all processes."""
    _calls[name] = _calls.get(name, 0) + 1
    return f"{_PREFIX}/{name}/{_calls[name]}"


def values_below(key: str) -> dict[str, str]:
    """Values of the keys below `key`, by the last part of their names."""
    return {
        name.rsplit("/", 1)[-1]: value
        for name, value in client().key_value_dir_get(f"{key}/")
    }


def try_get(key: str) -> str | None:
    """The value of a key; None if it is not set."""
    try:
        return client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise
