"""Exchange of values between the processes of a run, with time limits."""

from collections.abc import Callable
import json
from typing import Any

import jax

from prottrans_jax import setting_trees
from prottrans_jax.distributed import coordination, roll_call


class ProcessesMissing(TimeoutError):
    """Some processes did not arrive in time; the message names them."""


class ProcessZeroError(RuntimeError):
    """A function failed on process 0; the message holds that of its error."""


def gather(name: str, value: setting_trees.Tree, timeout_s: float) -> list[Any]:
    """Values of all processes, in the order of processes.

    Args:
      name: of the values, for the error. Every process makes the same calls in the same
        order.
      value: of this process; JSON-able.
      timeout_s: limit of the wait.

    Raises:
      ProcessesMissing: names the processes that did not arrive.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    key = coordination.new_key(f"gather/{name}")
    entry = json.dumps({"who": roll_call.whoami(), "value": value})
    coordination.client().key_value_set(f"{key}/{jax.process_index()}", entry)

    def arrived(key: str) -> dict[str, str]:
        entries = coordination.values_below(key)
        return {p: json.loads(entry)["who"] for p, entry in entries.items()}

    _wait_for_all(name, key, timeout_s, arrived)
    entries = coordination.values_below(key)
    count = range(jax.process_count())
    return [json.loads(entries[str(process)])["value"] for process in count]


def _wait_for_all(
    description: str,
    key: str,
    timeout_s: float,
    arrived: Callable[[str], dict[str, str]],
) -> None:
    """Waits at the barrier `key`; `arrived(key)` names processes by their number."""
    try:
        coordination.client().wait_at_barrier(key, int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        present = arrived(key)
        missing = [p for p in range(jax.process_count()) if str(p) not in present]
        names = ", ".join(f"{p} ({who})" for p, who in sorted(present.items()))
        raise ProcessesMissing(
            f"{description}: after {timeout_s:g} s process "
            f"{', '.join(map(str, missing)) or '(none)'} of {jax.process_count()} is "
            f"missing. Here: {names}."
        ) from error


def from_process_zero(name: str, function: Callable[[], Any], timeout_s: float) -> Any:
    """Calls a function on process 0 and returns its result on every process.

    Args:
      name: of the call, for errors. Every process makes the same calls in the same
        order.
      function: called on process 0 only; its result must be JSON-able.
      timeout_s: limit of the other processes' wait.

    Raises:
      Exception: on process 0: the error of `function`.
      ProcessZeroError: on other processes, if `function` failed.
      ProcessesMissing: process 0 did not answer in time.
    """
    if jax.process_count() == 1:
        return function()
    client = coordination.client()
    key = coordination.new_key(name)
    if jax.process_index() == 0:
        try:
            result = function()
            answer = json.dumps({"result": result})
        except BaseException as error:
            client.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client.key_value_set(key, answer)
        return result
    try:
        answer = json.loads(client.blocking_key_value_get(key, int(timeout_s * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise ProcessesMissing(
            f"{name}: process 0 did not answer within {timeout_s:g} s."
        ) from error
    if "error" in answer:
        raise ProcessZeroError(f"{name} failed on process 0: {answer['error']}")
    return answer["result"]
