"""Runs of the trainer with flat arguments."""

from typing import Any

from prottrans_jax.training import run_settings, train_state, trainer

_GROUPS = {
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
    return trainer.train(**arguments, **groups)


def plan(
    *, objective: Any, optimizer: Any, partitioner: Any, train_data: Any, **unused: Any
) -> train_state.StatePlan:
    """The plan of the state of a run with these arguments of `train`."""
    shapes = train_state.batch_shapes(train_data)
    return train_state.plan(objective, optimizer, partitioner, shapes)
