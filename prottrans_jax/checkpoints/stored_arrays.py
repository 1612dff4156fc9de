"""Arrays of a checkpoint by name: what is on disk, how it differs, reading it.

A name is the path to a leaf, e.g. `params/encoder/encoder_norm/scale`. Written by
`checkpoints` with Orbax's PyTree handler, whose format any Orbax can read.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import numpy as np
from orbax import checkpoint as ocp

from prottrans_jax.interop import mismatches

# What helps where a checkpoint is of another model.
REMEDY = (
    "The checkpoint is of another model: give the model its settings, which are in "
    "the config.gin of its run, or choose another checkpoint."
)


class MismatchError(ValueError):
    """Arrays of the model and arrays on disk differ; the message names some and counts.

    Attributes:
      metadata: JSON of the step on disk, where it has one.
    """

    def __init__(self, message: str, metadata: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.metadata = metadata or {}


def on_disk(path: epath.Path) -> dict[str, Any]:
    """Name to Orbax's description (shape, dtype) of each array of a step."""
    tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
    return dict(by_name(tree))


def read(
    path: epath.Path, wanted: Mapping[str, Any], *, as_numpy: bool = False
) -> list[Any]:
    """Reads the wanted arrays of a step, in the order, dtypes and shardings wanted."""
    if not wanted:
        return []

    def how(leaf: Any) -> ocp.RestoreArgs:
        if as_numpy:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(
            sharding=getattr(leaf, "sharding", None) or local,
            global_shape=tuple(leaf.shape),
            dtype=leaf.dtype,
        )

    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restore_args = {name: how(leaf) for name, leaf in wanted.items()}
    processes = set(range(jax.process_count())) if jax.process_count() > 1 else None
    handler = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=processes
        )
    )
    tree = handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            item=nested(wanted), restore_args=nested(restore_args), partial_restore=True
        ),
    )
    arrays = by_name(tree)
    return [arrays[name] for name in wanted]


def compare(
    wanted: Mapping[str, Any], stored: Mapping[str, Any]
) -> mismatches.Mismatch:
    """How two sets of named arrays differ; false when they fit.

    Floating-point dtypes fit each other, a restore casts; other dtypes must agree.

    Args:
      wanted: name to anything with a shape and a dtype.
      stored: the same, of a checkpoint.
    """
    missing = sorted(wanted.keys() - stored.keys())
    extra = sorted(stored.keys() - wanted.keys())
    wrong = [
        name
        for name in sorted(wanted.keys() & stored.keys())
        if not _fits(wanted[name], stored[name])
    ]
    return mismatches.Mismatch(
        wrong=[
            f"! {name}: model {_describe(wanted[name])}, "
            f"checkpoint {_describe(stored[name])}"
            for name in wrong
        ],
        missing=[f"- {name} {_describe(wanted[name])}" for name in missing],
        extra=[f"+ {name} {_describe(stored[name])}" for name in extra],
    )


def _fits(ours: Any, theirs: Any) -> bool:
    if tuple(ours.shape) != tuple(theirs.shape):
        return False
    return ours.dtype == theirs.dtype or bool(
        jnp.issubdtype(ours.dtype, jnp.floating)
        and jnp.issubdtype(theirs.dtype, jnp.floating)
    )


def by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, e.g. `params/encoder/encoder_norm/scale`, in JAX's order."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return named


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with the leaves that the names lead to."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _describe(array: Any) -> str:
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"
