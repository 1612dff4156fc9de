"""Arrays of a checkpoint by name: listing, comparing, reading.

A name is the path to a leaf, e.g. `params/encoder/encoder_norm/scale`. `checkpointing`
writes them with Orbax's PyTree handler, in a format that every Orbax can read.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import numpy as np
from orbax import checkpoint as ocp

from prottrans_jax import types
from prottrans_jax.checkpoints import bucket_arrays
from prottrans_jax.interop import mismatches

# Advice for a checkpoint of another model.
REMEDY = (
    "The checkpoint is of another model: use the settings in the config.gin of its "
    "run, or choose another checkpoint."
)
_OTHER_SCAN = (
    "Both have the same layers, in one of them stacked: set ComputeConfig.scan_layers "
    "as in the run of the checkpoint (in its config.gin; the default is True)."
)


class MismatchError(ValueError):
    """Arrays of the model and the checkpoint differ; lists some, and their number.

    Attributes:
      metadata: JSON of the checkpoint; empty if it has none.
    """

    def __init__(self, message: str, metadata: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.metadata = metadata or {}


def remedy(model: Iterable[str], checkpoint: Iterable[str]) -> str:
    """Advice for a mismatch of a model's and a checkpoint's arrays, by their names."""
    stacked = [
        {re.sub(r"(^|/)layers_\d+/", r"\1layers/", name) for name in names}
        for names in (model, checkpoint)
    ]
    same_layout = set(model) == set(checkpoint)
    return _OTHER_SCAN if stacked[0] == stacked[1] and not same_layout else REMEDY


def on_disk(path: epath.Path) -> dict[str, Any]:
    """Name to Orbax's description (shape, dtype) of each array of a step."""
    bucket_arrays.prepare(path)
    tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
    return dict(by_name(tree))


def read(
    path: epath.Path, abstract_arrays: Mapping[str, Any], *, as_numpy: bool = False
) -> list[Any]:
    """Reads arrays of a step.

    Args:
      path: directory of the step.
      abstract_arrays: name to shape, dtype and perhaps sharding of each array to read.
      as_numpy: returns numpy arrays instead of JAX arrays.

    Returns:
      Arrays in the order of `abstract_arrays`.
    """
    if not abstract_arrays:
        return []
    bucket_arrays.prepare(path)

    def restore_args_of(leaf: types.Shaped) -> ocp.RestoreArgs:
        if as_numpy:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(
            sharding=getattr(leaf, "sharding", None) or local,
            global_shape=tuple(leaf.shape),
            dtype=leaf.dtype,
        )

    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restore_args = {
        name: restore_args_of(leaf) for name, leaf in abstract_arrays.items()
    }
    processes = set(range(jax.process_count())) if jax.process_count() > 1 else None
    handler = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=processes
        )
    )
    tree = handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            item=nested(abstract_arrays),
            restore_args=nested(restore_args),
            partial_restore=True,
        ),
    )
    arrays = by_name(tree)
    return [arrays[name] for name in abstract_arrays]


def compare(model: Mapping[str, Any], stored: Mapping[str, Any]) -> mismatches.Mismatch:
    """How two sets of named arrays differ; false when they fit.

    All floating-point dtypes fit each other, as a restore casts; others must be equal.

    Args:
      model: name to anything with a shape and a dtype.
      stored: the same, of a checkpoint.
    """
    missing = sorted(model.keys() - stored.keys())
    extra = sorted(stored.keys() - model.keys())
    wrong = [
        name
        for name in sorted(model.keys() & stored.keys())
        if not _fits(model[name], stored[name])
    ]
    return mismatches.Mismatch(
        wrong=[
            f"! {name}: model {_describe(model[name])}, "
            f"checkpoint {_describe(stored[name])}"
            for name in wrong
        ],
        missing=[f"- {name} {_describe(model[name])}" for name in missing],
        extra=[f"+ {name} {_describe(stored[name])}" for name in extra],
    )


def _fits(model: types.Shaped, stored: types.Shaped) -> bool:
    if tuple(model.shape) != tuple(stored.shape):
        return False
    return model.dtype == stored.dtype or bool(
        jnp.issubdtype(model.dtype, jnp.floating)
        and jnp.issubdtype(stored.dtype, jnp.floating)
    )


def by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, e.g. `params/encoder/encoder_norm/scale`, in JAX's order."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return named


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of leaves; the inverse of `by_name` for such a tree."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _describe(array: types.Shaped) -> str:
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"
