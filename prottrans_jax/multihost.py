"""Processes of one run: start together, wait with limits, stop at the same step.

Everything here talks through JAX's coordination service, not through collectives: a
collective has no time-out and does not say who is missing.
"""

from collections.abc import Callable
import json
from typing import Any

import jax


class ProcessesMissing(TimeoutError):
    """Some processes did not come in time; the message names them."""


# A key can be written once: every call of a name gets a number. All processes make
# the same calls in the same order, so their numbers agree.
_calls: dict[str, int] = {}


def from_process_zero(name: str, function: Callable[[], Any], timeout_s: float) -> Any:
    """Runs a function on process 0 and gives every process its result.

    Args:
      name: said in errors; every process makes the same calls in the same order.
      function: called on process 0 only; its result must be JSON-able.
      timeout_s: how long the others wait.

    Raises:
      Exception: what `function` raised, on process 0.
      RuntimeError: on the others, if it raised there; with its message.
      ProcessesMissing: process 0 did not answer in time.
    """
    if jax.process_count() == 1:
        return function()
    client = _client()
    key = _numbered(name)
    if jax.process_index() == 0:
        try:
            result = function()
        except BaseException as error:
            client.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client.key_value_set(key, json.dumps({"result": result}))
        return result
    try:
        answer = json.loads(client.blocking_key_value_get(key, int(timeout_s * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise ProcessesMissing(
            f"{name}: process 0 did not answer within {timeout_s:g} s."
        ) from error
    if "error" in answer:
        raise RuntimeError(f"{name} failed on process 0: {answer['error']}")
    return answer["result"]


def _numbered(name: str) -> str:
    _calls[name] = _calls.get(name, 0) + 1
    return f"prottrans_jax/{name}/{_calls[name]}"


def _client() -> Any:
    client = jax._src.distributed.global_state.client
    if client is None:
        raise RuntimeError("multihost.initialize has not been called.")
    return client
