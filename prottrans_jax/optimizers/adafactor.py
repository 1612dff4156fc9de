"""Adafactor (Shazeer & Stern 2018) as in T5X: factored by logical axis names.

The second moment of a matrix's gradient is stored as one vector over rows and one over
columns. T5X adds two features that optax's version lacks. Logical names decide which
axes are rows and which are columns, and a "layers" axis is a *batch* axis: each layer
of a stack has its own factors, update clipping and parameter scale. Without them a
scanned model would be trained differently from an unscanned one.

Departure: T5X factors stacked parameters of any size. Here `min_dim_size_to_factor`
applies to a layer of a stack as to a single layer, so that scanning never changes the
update. The two agree if there are at least 128 rows and columns.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree
import numpy as np
import optax

LogicalAxes = tuple[str | None, ...]
# An array, or only its shape and type.
Shaped = jax.Array | np.ndarray | jax.ShapeDtypeStruct

# Roles of logical axes (T5X's standard_logical_factor_rules). Other names have the role
# "none".
FACTOR_RULES: Mapping[str, str] = {
    "embed": "row",
    "vocab": "column",
    "mlp": "column",
    "heads": "column",
    "kv": "column",
    "joined_kv": "column",
    "layers": "batch",
}


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Constants of the update, documented in `optimizers.Adafactor`."""

    factored: bool
    multiply_by_parameter_scale: bool
    beta1: float | None
    decay_rate: float
    step_offset: int
    clipping_threshold: float | None
    weight_decay_rate: float | None
    weight_decay_rate_lr_exponent: float | None
    min_dim_size_to_factor: int
    epsilon1: float
    epsilon2: float
    dtype_momentum: DTypeLike


class AdafactorState(NamedTuple):
    """State under T5X's names: `param_states/<parameter>/{v_row,v_col | v}[, m]`.

    T5X also stores a zero of shape (1,) for each of the four arrays that a parameter
    does not have.
    """

    step: Int[Array, ""]
    param_states: PyTree


@dataclasses.dataclass(frozen=True)
class Factoring:
    """Roles of the dimensions of one parameter.

    Attributes:
      averaged: Dimensions over which root mean squares are taken: all but "layers".
      rows: Dimensions of v_row; () if the second moment is not factored.
      columns: Dimensions of v_col.
    """

    averaged: tuple[int, ...]
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()


def factoring(
    name: str, shape: tuple[int, ...], axes: LogicalAxes | None, hyper: Hyperparameters
) -> Factoring:
    """Decides how a parameter is factored.

    Single matrix: the larger dimension is the columns (the last one if equal), as in
    T5X, whatever the names are. Stacks of matrices and kernels with more dimensions
    follow `FACTOR_RULES`; a stack whose names have no role is factored by size. With
    fewer than `min_dim_size_to_factor` rows or columns nothing is factored.

    Raises:
      ValueError: The axes do not match the shape, or there are rows, columns and an
        axis that is neither.
    """
    if axes is None:
        axes = (None,) * len(shape)
    if len(axes) != len(shape):
        raise ValueError(f"{name} has shape {shape} but logical axes {axes}.")
    roles = [FACTOR_RULES.get(axis or "", "none") for axis in axes]
    averaged = tuple(d for d, role in enumerate(roles) if role != "batch")
    if not hyper.factored:
        return Factoring(averaged)
    rows = tuple(d for d, role in enumerate(roles) if role == "row")
    columns = tuple(d for d, role in enumerate(roles) if role == "column")
    if len(averaged) == 2 and (len(shape) == 2 or not (rows and columns)):
        small, large = sorted(averaged, key=lambda d: shape[d])
        rows, columns = (small,), (large,)
    if rows and columns and len(rows) + len(columns) < len(averaged):
        raise ValueError(
            f"{name} with axes {axes} has rows and columns for Adafactor, and an axis "
            "that is neither. Give that axis a role in adafactor.FACTOR_RULES."
        )
    sizes = [math.prod(shape[d] for d in dims) for dims in (rows, columns) if dims]
    if len(sizes) < 2 or min(sizes) < hyper.min_dim_size_to_factor:
        return Factoring(averaged)
    return Factoring(averaged, rows, columns)


def scale_by_adafactor(
    schedule: Callable[[Any], Any], axes: PyTree, hyper: Hyperparameters
) -> optax.GradientTransformation:
    """The whole update, learning rate and sign included.

    Args:
      schedule: Function from step to learning rate.
      axes: Tuples of logical axis names, in a tree like the parameters.
      hyper: Constants.

    Returns:
      A transformation whose state is an `AdafactorState`. Arithmetic and state are
      float32 (momentum is stored in `dtype_momentum`).
    """

    def init(params: PyTree) -> AdafactorState:
        def zeros(
            name: str, param: Shaped, axes: LogicalAxes | None
        ) -> dict[str, Array]:
            kept = _kept_dims(factoring(name, param.shape, axes, hyper), param, hyper)
            return {
                key: jnp.zeros(
                    [param.shape[d] for d in dims],
                    hyper.dtype_momentum if key == "m" else jnp.float32,
                )
                for key, dims in kept.items()
            }

        return AdafactorState(jnp.zeros((), jnp.int32), map_named(zeros, params, axes))

    def update(
        grads: PyTree, state: AdafactorState, params: PyTree | None = None
    ) -> tuple[PyTree, AdafactorState]:
        if params is None:
            raise ValueError(
                "Adafactor needs the parameters: update(g, state, params)."
            )
        learning_rate = schedule(state.step)
        # As in T5X, the decay of step t, 1 - (t + 1)^-0.8, is 0 at the first step, so
        # that the initial zeros of the moments have no weight.
        t = (state.step - hyper.step_offset).astype(jnp.float32) + 1.0
        decay = 1.0 - t**-hyper.decay_rate

        def one(
            name: str,
            param: Array,
            axes: LogicalAxes | None,
            grad: Array,
            old: dict[str, Array],
        ) -> tuple[Array, dict[str, Array]]:
            plan = factoring(name, param.shape, axes, hyper)
            return _update(grad, old, param, plan, learning_rate, decay, hyper)

        both = map_named(one, params, axes, grads, state.param_states)
        updates = map_named(lambda _name, _param, pair: pair[0], params, both)
        states = map_named(lambda _name, _param, pair: pair[1], params, both)
        return updates, AdafactorState(state.step + 1, states)

    return optax.GradientTransformation(init, update)


def state_axes(params: PyTree, axes: PyTree, hyper: Hyperparameters) -> AdafactorState:
    """Logical axes of every array of the state, in the structure of the state.

    Moments have the axes of their parameter; v_row and v_col have a part of them.
    """

    def names(
        name: str, param: Shaped, axes: LogicalAxes | None
    ) -> dict[str, LogicalAxes]:
        whole = axes or (None,) * len(param.shape)
        kept = _kept_dims(factoring(name, param.shape, axes, hyper), param, hyper)
        return {key: tuple(whole[d] for d in dims) for key, dims in kept.items()}

    return AdafactorState((), map_named(names, params, axes))  # type: ignore[arg-type]


def _kept_dims(
    plan: Factoring, param: Shaped, hyper: Hyperparameters
) -> dict[str, tuple[int, ...]]:
    """Dimensions of a parameter that each array of its state has."""
    every = tuple(range(len(param.shape)))
    if plan.rows:
        kept = {
            "v_row": tuple(d for d in every if d not in plan.columns),
            "v_col": tuple(d for d in every if d not in plan.rows),
        }
    else:
        kept = {"v": every}
    if hyper.beta1 is not None:
        kept["m"] = every
    return kept


def _update(
    grad: Float[Array, "..."],
    state: dict[str, Array],
    param: Float[Array, "..."],
    plan: Factoring,
    learning_rate: Float[Array, ""],
    decay: Float[Array, ""],
    hyper: Hyperparameters,
) -> tuple[Array, dict[str, Array]]:
    """(update to add to one parameter, its new state)."""

    def mean_square(x: Array) -> Array:
        return jnp.mean(x * x, axis=plan.averaged, keepdims=True)

    new = {}
    grad, param = grad.astype(jnp.float32), param.astype(jnp.float32)
    square = grad * grad + hyper.epsilon1
    if plan.rows:
        # [layers, rows, columns] -> v_row [layers, rows], v_col [layers, columns]
        rows, columns = plan.rows, plan.columns
        v_row = jnp.mean(square, axis=columns)
        v_col = jnp.mean(square, axis=rows)
        v_row = new["v_row"] = decay * state["v_row"] + (1.0 - decay) * v_row
        v_col = new["v_col"] = decay * state["v_col"] + (1.0 - decay) * v_col
        rows_left = tuple(d - sum(c < d for c in columns) for d in rows)
        v_row = v_row / jnp.mean(v_row, axis=rows_left, keepdims=True)
        step = (
            grad
            * jnp.expand_dims(v_row**-0.5, columns)
            * jnp.expand_dims(v_col**-0.5, rows)
        )
    else:
        new["v"] = decay * state["v"] + (1.0 - decay) * square
        step = grad * new["v"] ** -0.5
    # One factor per layer: the array is then read once more and written once.
    factor = learning_rate
    if hyper.clipping_threshold is not None:
        rms = jnp.sqrt(mean_square(step))
        factor = factor / jnp.maximum(1.0, rms / hyper.clipping_threshold)
    if hyper.multiply_by_parameter_scale:
        factor = factor * jnp.maximum(jnp.sqrt(mean_square(param)), hyper.epsilon2)
    step = factor * step
    if hyper.beta1 is not None:
        momentum = hyper.beta1 * state["m"] + (1.0 - hyper.beta1) * step
        new["m"] = momentum.astype(hyper.dtype_momentum)
        step = momentum
    weight_decay: Float[Array, ""] | float | None = hyper.weight_decay_rate
    if hyper.weight_decay_rate_lr_exponent is not None:
        weight_decay = (1.0 if weight_decay is None else weight_decay) * (
            learning_rate**hyper.weight_decay_rate_lr_exponent
        )
    if weight_decay is not None:
        step = step + weight_decay * param
    return -step, new


def map_named(function: Callable[..., Any], params: PyTree, *rest: PyTree) -> PyTree:
    """Maps function(name, leaf, *rest) over parameters; `rest` may have subtrees."""
    treedef: jax.tree_util.PyTreeDef
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    others = [treedef.flatten_up_to(tree) for tree in rest]
    return treedef.unflatten(
        function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf, *args)
        for (path, leaf), *args in zip(leaves, *others, strict=True)
    )
