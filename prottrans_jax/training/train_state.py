"""The training state and its layout on a mesh."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax
from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import optax

from prottrans_jax import partitioning, types

BatchShapes = Mapping[str, jax.ShapeDtypeStruct]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes besides the batch.

    Attributes:
      step: steps done so far, int32 scalar.
      params: model parameters, a plain tree with T5X's names.
      opt_state: state of the optimizer.
      carry: memories of the objective, each leaf batch-first; `()` without memories.
    """

    step: Any  # An array; in a plan, its shape or its sharding.
    params: PyTree
    opt_state: PyTree
    carry: PyTree


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """Shapes and shardings of a run's state, planned before it is allocated.

    Attributes:
      objective: the loss, which owns the model.
      optimizer: for the learning rate of a step; `tx` updates parameters.
      partitioner: provides the mesh and the sharding rules.
      batch_shapes: feature name to the shape of the first global batch.
      tx: the optimizer as an optax transformation.
      shapes: `TrainState` of `jax.ShapeDtypeStruct`.
      shardings: `TrainState` of `jax.sharding.NamedSharding`.
      axes: logical axis names of each parameter.
    """

    objective: types.Objective
    optimizer: types.Optimizer
    partitioner: types.Partitioner
    batch_shapes: BatchShapes
    tx: optax.GradientTransformation
    shapes: TrainState
    shardings: TrainState
    axes: PyTree

    @property
    def abstract(self) -> TrainState:
        """Shapes with their shardings, as restoring and compiling require."""
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            self.shapes,
            self.shardings,
        )

    def abstract_batch(
        self, batch: Mapping[str, types.Shaped]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch with their sharding, as compiling requires."""
        return {
            name: jax.ShapeDtypeStruct(
                array.shape, array.dtype, sharding=self.partitioner.batch_sharding
            )
            for name, array in batch.items()
        }

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return next(iter(self.batch_shapes.values())).shape[0]

    @property
    def num_params(self) -> int:
        """Number of parameters of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))


def plan(
    objective: types.Objective,
    optimizer: types.Optimizer,
    partitioner: types.Partitioner,
    batch_shapes: BatchShapes,
) -> StatePlan:
    """Lays out a run's state on the partitioner's mesh without allocating it.

    Whatever creates, restores or compiles a state does so with this plan.

    Args:
      objective: see `objectives.denoising.Denoising`.
      optimizer: see `optimizers`.
      partitioner: see `partitioning.Partitioner`.
      batch_shapes: feature name to the shape of the global batch; see `batch_shapes`.

    Raises:
      ValueError: a parameter's dimension does not divide over its mesh axis.
    """
    batch_size = next(iter(batch_shapes.values())).shape[0]
    with partitioner.scope():
        # The key is created inside: the mesh may be of devices that are not attached.
        boxed = jax.eval_shape(lambda: objective.init(jax.random.key(0), batch_shapes))
    axes = partitioning.logical_axes(boxed)
    params = nn.unbox(boxed)
    tx = optimizer.build(axes)
    opt_state = jax.eval_shape(tx.init, params)
    carry = jax.eval_shape(lambda: objective.initial_carry(batch_size))
    replicated = jax.sharding.NamedSharding(
        partitioner.mesh, jax.sharding.PartitionSpec()
    )
    return StatePlan(
        objective=objective,
        optimizer=optimizer,
        partitioner=partitioner,
        batch_shapes=batch_shapes,
        tx=tx,
        shapes=TrainState(
            jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, carry
        ),
        shardings=TrainState(
            step=replicated,
            params=partitioner.shardings(axes, params),
            opt_state=partitioner.shardings(
                optimizer.state_axes(params, axes), opt_state
            ),
            carry=jax.tree.map(lambda _: partitioner.batch_sharding, carry),
        ),
        axes=axes,
    )


def initialize(
    state_plan: StatePlan, seed: int, params: PyTree | None = None
) -> TrainState:
    """Creates the state of step 0; arrays are initialised with their final sharding.

    Args:
      state_plan: from `plan`.
      seed: of the initial parameters.
      params: used instead of random ones, e.g. from another run's checkpoint.
    """
    objective = state_plan.objective

    def create(key, params):
        if params is None:
            params = nn.unbox(objective.init(key, state_plan.batch_shapes))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=state_plan.tx.init(params),
            carry=objective.initial_carry(state_plan.batch_size),
        )

    with state_plan.partitioner.scope():
        return jax.jit(create, out_shardings=state_plan.shardings)(
            jax.random.key(seed), params
        )


def check_vocabulary(objective: types.Objective, data: types.Loader) -> None:
    """Checks that the model has an embedding row for each id of `data`.

    A missing row would cause no error later: the one-hot of such an id is all zeros.

    Raises:
      ValueError: The model has fewer rows; names both numbers.
    """
    config = getattr(getattr(objective, "model", None), "config", None)
    if config is None or not isinstance(data, types.TokenLoader):
        return
    if config.vocab_size < data.vocab_size:
        raise ValueError(
            f"{type(config).__name__}.vocab_size={config.vocab_size} is less than the "
            f"{data.vocab_size} ids of the task's vocabulary. Set vocab_size to "
            f"{data.vocab_size} or more, or choose a task of the model's family."
        )


def batch_shapes(data: types.Loader) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a loader's global batches, from one row of the first batch."""
    return {
        name: jax.ShapeDtypeStruct((data.batch_size, *x.shape[1:]), x.dtype)
        for name, x in data.batch(0, rows=slice(0, 1)).items()
    }
