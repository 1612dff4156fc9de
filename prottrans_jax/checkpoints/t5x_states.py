"""The whole state of a T5X run: parameters, Adafactor's moments and the step.

T5X's `t5` network and our models have the same parameters; the moments differ only in
which of a matrix's dimensions is called the row (`interop.t5_names.renamed_slots`).
"""

import os

from flax import traverse_util
from jaxtyping import PyTree
import numpy as np

from prottrans_jax import types
from prottrans_jax.checkpoints import (
    manifests,
    opening,
    stored_arrays,
    stored_steps,
)
from prottrans_jax.interop import families, layer_stacks, t5_names, t5x

_SLOTS = "opt_state/param_states"


def load(
    source: str | os.PathLike,
    abstract_parts: dict[str, PyTree],
    model_config: types.ModelConfig | None,
) -> stored_steps.Restored:
    """Reads the state of a T5X run, to go on from it.

    Args:
      source: One step, or a folder of steps of which the newest is read; `t5x:` may
        come first.
      abstract_parts: `step`, `params` and `opt_state` of our state, as trees of
        `jax.ShapeDtypeStruct` with the final shardings.
      model_config: Configuration of the model, compared with that of the checkpoint.

    Returns:
      The step; its state is a dictionary of the parts, and it has no metadata.

    Raises:
      manifests.CheckpointError: The checkpoint is missing or damaged.
      stored_arrays.MismatchError: Arrays or settings differ; lists both sides.
      ValueError: The checkpoint or the run has another optimizer, or other ids.
    """
    names = stored_arrays.by_name(abstract_parts)
    if not any(name.startswith(f"{_SLOTS}/") for name in names):
        raise ValueError(
            f"{source} is of T5X, whose optimizer is Adafactor, and this run has "
            "another one. Use optimizers.Adafactor, or start from the parameters "
            "alone, with INITIAL_CHECKPOINT_PATH."
        )
    try:
        with opening.on_this_machine(source) as local:
            return _load(source, local, abstract_parts, model_config)
    except FileNotFoundError as error:
        raise manifests.CheckpointError(str(error)) from error


def _load(
    source: str | os.PathLike,
    local: str,
    abstract_parts: dict[str, PyTree],
    model_config: types.ModelConfig | None,
) -> stored_steps.Restored:
    """`load` from a source on this machine."""
    names = stored_arrays.by_name(abstract_parts)
    checkpoint = opening.read(local)
    contents = t5x.open_(opening.split(local)[1])
    slots = t5x.read_slots(contents)
    opening.check_settings(source, checkpoint, model_config)
    if checkpoint.own_vocabulary is not None:
        raise ValueError(
            f"{source} has other ids than this library. Start from its parameters "
            "alone, with INITIAL_CHECKPOINT_PATH, which reorders them."
        )
    assert contents.step is not None  # Else there are no slots.
    step = np.asarray(contents.step, np.int32)
    flat = {"step": step, "opt_state/step": step}
    stacked = any(map(layer_stacks.is_stacked, names))
    params = traverse_util.flatten_dict(checkpoint.params, sep="/")
    for name, array in params.items():
        flat[f"params/{name}"] = array
        ours = t5_names.renamed_slots(
            name, array.shape, slots.get(name, {}), stacked=stacked
        )
        for slot, value in ours.items():
            flat[f"{_SLOTS}/{name}/{slot}"] = value
    state = opening.place_arrays(source, flat, abstract_parts)
    return stored_steps.Restored(contents.step, state, metadata={})


def slots_of_run(
    checkpoint: families.Checkpoint,
) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
    """Step and Adafactor's moments of one of our runs, for `t5x.write`.

    Args:
      checkpoint: A step of a run, from `opening.read`, with layers not stacked.

    Returns:
      The number of the step; arrays v, v_row, v_col and m of each parameter, with
      T5X's meaning of rows.

    Raises:
      manifests.CheckpointError: The step is damaged.
      ValueError: It is not of a run, or of one without Adafactor's state.
    """
    if not checkpoint.form.startswith("prottrans_jax"):
        raise ValueError(
            f"--optimizer_state is for runs of this library; {checkpoint.source} is "
            f"{checkpoint.form}."
        )
    arrays, _, _ = stored_steps.read_arrays(checkpoint.source, f"{_SLOTS}/")
    if not arrays:
        raise ValueError(
            f"{checkpoint.source} has no state of Adafactor, which T5X's checkpoints "
            "hold. Drop --optimizer_state: T5X then starts from the parameters, with "
            "new moments."
        )
    flat = traverse_util.flatten_dict(
        layer_stacks.unstack(traverse_util.unflatten_dict(arrays, sep="/")), sep="/"
    )
    stacked = any(map(layer_stacks.is_stacked, arrays))
    params = traverse_util.flatten_dict(checkpoint.params, sep="/")
    slots = {}
    for name, param in params.items():
        ours = {
            slot: flat[f"{name}/{slot}"]
            for slot in t5x.SLOTS
            if f"{name}/{slot}" in flat
        }
        slots[name] = t5_names.renamed_slots(name, param.shape, ours, stacked=stacked)
    return int(checkpoint.source.name), slots
