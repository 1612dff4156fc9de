"""Trains a head on stored vectors in memory, without a model directory.

For evaluations, which train many small heads, also inside a training run: there the
trainer cannot be called again. Loss and rows are those of `finetuning`, whose runs can
be stopped and resumed.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prottrans_jax import types
from prottrans_jax.downstream import head_objective, labelled_rows


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained head.

    Attributes:
      params: Parameters after the epoch with the least validation loss.
      losses: Validation loss after each epoch.
      best_epoch: Index of that epoch, from 0.
    """

    params: types.Params
    losses: tuple[float, ...]
    best_epoch: int


def fit(
    objective: head_objective.HeadObjective,
    train: labelled_rows.LabelledRows,
    validation: labelled_rows.LabelledRows,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    patience: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Fit:
    """Trains until `epochs`, or `patience` epochs without a lower validation loss.

    Args:
      objective: Loss of the head on stored vectors.
      train: Training proteins.
      validation: Validation proteins.
      optimizer: Optimizer.
      epochs: Passes over the training proteins.
      patience: Epochs without a lower loss after which training ends.
      seed: Of initial parameters and dropout.
      check: Called after every step, e.g. to tell a watchdog.

    Raises:
      FloatingPointError: The validation loss is not finite.
    """

    def loss(params: types.Params, batch: types.Batch, rng: jax.Array, train: bool):
        return objective(
            params, batch, objective.normalizers(batch), (), rng, train=train
        )

    @jax.jit
    def step(params, state, batch, rng):
        grads, _ = jax.grad(loss, has_aux=True)(params, batch, rng, True)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def evaluate(params, batch):
        _, (metrics, _) = loss(params, batch, jax.random.key(0), False)
        return metrics["loss"]

    key = jax.random.key(seed)
    init_key, dropout_key = jax.random.split(key)
    params: Any = objective.init(init_key, train.batch(0))
    state = optimizer.init(params)
    best, losses, best_epoch = params, [], 0
    for epoch in range(epochs):
        for number in range(train.batches_per_epoch):
            index = epoch * train.batches_per_epoch + number
            batch = _used(objective, train.batch(index))
            rng = jax.random.fold_in(dropout_key, index)
            params, state = step(params, state, batch, rng)
            check()
        sums = np.zeros(2)
        for number in range(validation.batches_per_epoch):
            sums += evaluate(params, _used(objective, validation.batch(number)))
            check()
        losses.append(float(sums[0] / sums[1]))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the validation loss is {losses[-1]} after epoch {epoch + 1}. Are the "
                "vectors finite, and is there a label that counts?"
            )
        if losses[-1] <= min(losses):
            best, best_epoch = params, epoch
        elif epoch - best_epoch >= patience:
            break
    return Fit(jax.device_get(best), tuple(losses), best_epoch)


def _used(objective, batch) -> types.Batch:
    return {name: jnp.asarray(batch[name]) for name in objective.features}
