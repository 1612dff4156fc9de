"""The state with which a run starts or resumes, and checks that it is the same run."""

from collections.abc import Mapping
from typing import Any

from absl import logging
import jax

from prottrans_jax import differences, types
from prottrans_jax.checkpoints import (
    checkpointing,
    manifests,
    opening,
    run_identity,
    stored_arrays,
    stored_steps,
    t5x_states,
)
from prottrans_jax.distributed import agreement, barriers, roll_call
from prottrans_jax.files import paths
from prottrans_jax.training import run_settings, train_state, train_step

# Every host opens its data before; slow storage may need minutes.
_AGREEMENT_TIMEOUT_S = 900.0


def identity_of(
    plan: train_state.StatePlan, seed: int, batch_size: int, start: run_settings.Start
) -> dict[str, Any]:
    """The configuration that a checkpoint must match to resume this run."""
    sources = {
        name: None if source is None else paths.whole_source(source, name)
        for name, source in (
            ("init_from", start.init_from),
            ("continue_from", start.continue_from),
        )
    }
    if sources["continue_from"] is None:  # Runs of earlier versions do not name it.
        del sources["continue_from"]
    return run_identity.identity(
        objective=plan.objective,
        optimizer=plan.optimizer,
        seed=seed,
        batch_size=batch_size,
        **sources,
    )


def check_hosts_agree(
    settings: Mapping[str, Any], data: Mapping[str, types.Loader]
) -> None:
    """Checks that hosts have the same packages, settings and data.

    Args:
      settings: JSON-able values that must be equal.
      data: name to a loader.

    Raises:
      agreement.DisagreementError: they differ; lists the differences.
    """
    if jax.process_count() == 1:
        return
    agreement.check(
        lambda name, value: barriers.gather(name, value, _AGREEMENT_TIMEOUT_S),
        roll_call.whoami(),
        {
            "package": agreement.packages(),
            "setting": settings,
            "data": {name: loader.state(0) for name, loader in data.items()},
        },
    )


def restore(
    checkpointer: checkpointing.Checkpointer,
    plan: train_state.StatePlan,
    identity: Mapping[str, Any],
    start: run_settings.Start,
    max_lost_steps: int,
) -> stored_steps.Restored | None:
    """The newest sound checkpoint of this run; None if the run has no checkpoint.

    Raises:
      ValueError: the checkpoints are of another run; lists the differences.
      manifests.CheckpointError: no sound checkpoint is new enough.
    """
    try:
        restored = checkpointer.restore(
            plan.abstract,
            max_lost_steps=None if start.accept_lost_steps else max_lost_steps,
            way_out="or set run_settings.Start.accept_lost_steps=True to repeat these "
            "steps",
        )
    except stored_arrays.MismatchError as error:
        # Report differing settings first; they cause the differing arrays.
        _check_identity(run_identity.of_checkpoint(error.metadata), identity, None)
        raise
    if restored is None:
        return None
    _check_identity(
        run_identity.of_checkpoint(restored.metadata),
        identity,
        start.accept_config_changes,
    )
    logging.info("Resuming from the checkpoint of step %d.", restored.step)
    return restored


def first_state(
    plan: train_state.StatePlan,
    identity: Mapping[str, Any],
    seed: int,
    start: run_settings.Start,
    total_steps: int,
) -> tuple[train_state.TrainState, int]:
    """The state of a new run, and its step.

    Raises:
      manifests.CheckpointError: the checkpoint to start from is missing or damaged.
      ValueError: it is of another model or optimizer; lists the differences. Or it is
        already at `total_steps`.
    """
    if start.continue_from is not None:
        return _continued_state(plan, identity, start, total_steps)
    params = None
    if start.init_from is not None:
        model = getattr(plan.objective, "model", None)
        params = opening.load_params(
            start.init_from, plan.abstract.params, getattr(model, "config", None)
        )
        logging.info("Parameters start from %s.", start.init_from)
    return train_state.initialize(plan, seed, params), 0


def _continued_state(
    plan: train_state.StatePlan,
    identity: Mapping[str, Any],
    start: run_settings.Start,
    total_steps: int,
) -> tuple[train_state.TrainState, int]:
    """The state of another run, with empty memories: the new data are others."""
    source = start.continue_from
    assert source is not None
    about = f"continue_from={source!r}"
    abstract = plan.abstract
    parts = {name: getattr(abstract, name) for name in ("step", "params", "opt_state")}
    try:
        kind, place = opening.split_known(source)
        if kind == "t5x":
            model = getattr(plan.objective, "model", None)
            config = getattr(model, "config", None)
            restored = t5x_states.load(source, parts, config)
        elif kind in ("", "run"):
            restored = stored_steps.load_state(place, parts)
        else:
            raise ValueError(
                f"{about} is neither a run of this library nor of T5X: there is no "
                "optimizer state to go on with. Start from the parameters alone, with "
                "INITIAL_CHECKPOINT_PATH."
            )
    except stored_arrays.MismatchError as error:
        # Report differing settings first; they cause the differing arrays.
        _check_same_model(about, error.metadata, identity, accept=False)
        raise
    except (manifests.CheckpointError, FileNotFoundError) as error:
        raise manifests.CheckpointError(f"{about}: {error}") from error
    _check_same_model(about, restored.metadata, identity, start.accept_config_changes)
    if restored.step >= total_steps:
        raise ValueError(
            f"{about} is at step {restored.step:,}, and total_steps={total_steps:,} "
            "counts its steps too: no step is left. Raise total_steps (TRAIN_STEPS)."
        )
    logging.info("The run goes on from step %d of %s.", restored.step, source)
    carry = train_step.initial_carry(plan, plan.batch_size)
    return train_state.TrainState(**restored.state, carry=carry), restored.step


def _check_same_model(
    about: str,
    metadata: Mapping[str, Any],
    identity: Mapping[str, Any],
    accept: bool,
) -> None:
    """Raises if model or optimizer of another run differ; `accept=True` only warns.

    T5X stores no metadata; `t5x_states.load` compares what it can.
    """
    if not metadata:
        return
    saved = run_identity.of_checkpoint(metadata)
    lines = differences.lines(
        *(
            {part: tree.get(part) for part in ("objective", "optimizer")}
            for tree in (saved, identity)
        )
    )
    _refuse_or_warn(
        lines,
        accept,
        f"{about} is a run with another model or optimizer",
        "Use the settings in its config.gin. Or set "
        "run_settings.Start.accept_config_changes=True, if arrays are the same; "
        "or start from its parameters alone, with INITIAL_CHECKPOINT_PATH.",
    )


def _check_identity(
    saved: Mapping[str, Any], identity: Mapping[str, Any], accept: bool | None
) -> None:
    """Raises if the configurations differ; `accept=True` only warns.

    Args:
      saved: identity in the checkpoint.
      identity: of this run.
      accept: None: the change cannot be accepted, and the error does not offer it.
    """
    for name in ("init_from", "continue_from"):
        before, now = saved.get(name), identity.get(name)
        if before and now and paths.same_source(before, now):
            saved = {**saved, name: now}
    if saved.get("seed") != identity["seed"]:
        accept = None  # Another seed draws other rows.
    way_out = (
        "."
        if accept is None
        else " (INITIAL_CHECKPOINT_PATH = 'DIR' starts it from the parameters of "
        "this one), or set run_settings.Start.accept_config_changes=True to "
        "continue with the new values."
    )
    _refuse_or_warn(
        differences.lines(saved, identity),
        bool(accept),
        "The model directory holds a run of another configuration",
        f"Choose another model_dir{way_out}",
    )


def _refuse_or_warn(lines: list[str], accept: bool, problem: str, way_out: str) -> None:
    """Raises ValueError with the differing settings; `accept=True` only warns."""
    if not lines:
        return
    listing = "\n".join(f"  {line}" for line in lines)
    if not accept:
        raise ValueError(f"{problem} (saved -> new):\n{listing}\n{way_out}")
    logging.warning("Continuing with changed values:\n%s", listing)
