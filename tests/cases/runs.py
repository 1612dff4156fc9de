"""Runs of the trainer with flat arguments; equal programs are traced once a process."""

from collections.abc import Callable
import contextlib
import dataclasses
import inspect
from typing import Any
from unittest import mock

import jax
from jax import numpy as jnp

from prottrans_jax import partitioning
from prottrans_jax.training import run_settings, train_state, train_step, trainer

_GROUPS = {
    "best": run_settings.Best,
    "checkpoints": run_settings.Checkpoints,
    "evaluation": run_settings.Evaluation,
    "limits": run_settings.Limits,
    "logs": run_settings.Logs,
    "replica_checks": run_settings.ReplicaChecks,
    "loss_spikes": run_settings.LossSpikes,
    "nonfinite": run_settings.NonFinite,
    "notices": run_settings.Notices,
    "start": run_settings.Start,
}


def train(**arguments: Any) -> trainer.Summary:
    """`trainer.train`; `checkpoints_period=2` is a field of its `checkpoints`."""
    fields: dict[str, dict[str, Any]] = {}
    for name in list(arguments):
        for group in _GROUPS:
            if name.startswith(f"{group}_"):
                field = name.removeprefix(f"{group}_")
                fields.setdefault(group, {})[field] = arguments.pop(name)
    groups = {group: _GROUPS[group](**values) for group, values in fields.items()}
    with contextlib.ExitStack() as stack:
        for module, name, function in _TRACED_ONCE:
            stack.enter_context(mock.patch.object(module, name, function))
        return trainer.train(**arguments, **groups)


def plan(
    *, objective: Any, optimizer: Any, partitioner: Any, train_data: Any, **unused: Any
) -> train_state.StatePlan:
    """The plan of the state of a run with these arguments of `train`."""
    shapes = train_state.batch_shapes(train_data)
    return _plan(objective, optimizer, partitioner, shapes)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which returns the same object for equal arguments.

    Most of the time of a run of tests is tracing. JAX keeps the trace of a function as
    long as the function is the same object.
    """
    signature = inspect.signature(function)
    results: list[tuple[dict[str, Any], Any]] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: _fields(x) for name, x in bound.arguments.items()}
        for earlier, result in results:
            if earlier == arguments:
                return result
        result = function(*args, **kwargs)
        results.append((arguments, result))
        return result

    return call


def _fields(value: Any) -> Any:
    """What to compare of an argument: partitioners have no equality."""
    if not isinstance(value, partitioning.Partitioner):
        return value
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


_plan = _once(train_state.plan)
_initialize = train_state.initialize
_random_state = _once(train_state.initialize)


def _copied_state(
    state_plan: train_state.StatePlan, seed: int, params: Any = None
) -> train_state.TrainState:
    """`train_state.initialize`; a copy of an equal state, because steps donate it."""
    if params is not None:  # Arrays have no equality of one value.
        return _initialize(state_plan, seed, params)
    return jax.tree.map(jnp.copy, _random_state(state_plan, seed))


_TRACED_ONCE = (
    (train_state, "plan", _plan),
    (train_state, "initialize", _copied_state),
    (train_step, "make_train_step", _once(train_step.make_train_step)),
    (train_step, "make_eval_step", _once(train_step.make_eval_step)),
)
