"""The jitted functions of a training step and an evaluation step.

Call, lower or trace them inside `partitioner.scope()`: the mesh and the table from
logical to mesh axes are read at trace time.
"""

import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import optax

from prottrans_jax import types
from prottrans_jax.training import train_state


def make_train_step(
    plan: train_state.StatePlan,
    *,
    seed: int,
    num_microbatches: int = 1,
    limits_loss: bool = False,
) -> jax.stages.Wrapped:
    """Builds the jitted step `(state, batch) -> (state, outputs)`; state is donated.

    Row j*k + i of the batch belongs to microbatch i of k, so that rows sharded over
    devices in blocks need no communication. Every microbatch divides by the normalizers
    of the whole batch. Gradients of microbatches therefore add up to the gradient of
    the whole batch for every weighting of tokens.

    A step whose loss or gradient is not finite leaves parameters, optimizer and carry
    unchanged, bit for bit, and sets `outputs["finite"]` to False.

    Args:
      plan: shapes and shardings of the state.
      seed: of dropout; the key of a step is a pure function of (seed, step).
      num_microbatches: number of slices over which gradients are accumulated.
      limits_loss: the step takes a third argument, a float32 scalar. A step with a
        larger loss leaves the state unchanged, too. Outputs gain "loss" and "accepted".

    Returns:
      outputs: {"sums": additive metrics, "finite", "learning_rate", "grad_norm",
      "param_norm", "update_norm"}.
    """
    objective = plan.objective

    def loss_and_grads(params, batch, normalizers, carry, rng):
        def loss_fn(params):
            return objective(params, batch, normalizers, carry, rng, train=True)

        (loss, (sums, carry)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        # Reduce straight into the layout of the parameters (a reduce-scatter where
        # they are sharded) rather than keep a replicated gradient.
        grads = jax.lax.with_sharding_constraint(grads, plan.shardings.params)
        return grads, loss, sums, carry

    def accumulate(params, batch, normalizers, carry, rng):
        if num_microbatches == 1:
            return loss_and_grads(
                params, batch, normalizers, carry, jax.random.fold_in(rng, 0)
            )
        batch, carry = jax.tree.map(split, (batch, carry))

        def body(totals, inputs):
            index, batch, carry = inputs
            *terms, carry = loss_and_grads(
                params, batch, normalizers, carry, jax.random.fold_in(rng, index)
            )
            return jax.tree.map(jnp.add, totals, tuple(terms)), carry

        first = jax.tree.map(lambda x: x[0], (batch, carry))
        terms = jax.eval_shape(
            lambda: loss_and_grads(params, first[0], normalizers, first[1], rng)[:3]
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), terms)
        zeros = (
            jax.lax.with_sharding_constraint(zeros[0], plan.shardings.params),
            *zeros[1:],
        )
        totals, carry = jax.lax.scan(
            body, zeros, (jnp.arange(num_microbatches), batch, carry)
        )
        return *totals, jax.tree.map(merge, carry)

    def split(x):
        # [batch, ...] -> [microbatches, batch / microbatches, ...]
        x = x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1)

    def merge(x):
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape(-1, *x.shape[2:])

    def train_step(state, batch, max_loss=None):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, loss, sums, carry = accumulate(
            state.params, batch, objective.normalizers(batch), state.carry, rng
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        accepted = finite if max_loss is None else finite & (loss <= max_loss)
        updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
        new = (optax.apply_updates(state.params, updates), opt_state, carry)
        old = (state.params, state.opt_state, state.carry)
        params, opt_state, carry = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), new, old
        )
        outputs = {
            "sums": sums,
            "finite": finite,
            "learning_rate": plan.optimizer.learning_rate_at(
                _updates_done(state.opt_state, state.step)
            ),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        if max_loss is not None:
            outputs |= {"loss": loss, "accepted": accepted}
        return train_state.TrainState(state.step + 1, params, opt_state, carry), outputs

    limit = (plan.shardings.step,) if limits_loss else ()  # Replicated.
    return jax.jit(
        train_step,
        in_shardings=(plan.shardings, plan.partitioner.batch_sharding, *limit),
        out_shardings=(plan.shardings, plan.shardings.step),  # Outputs: replicated.
        donate_argnums=0,
        compiler_options=plan.partitioner.compiler_options,
    )


def _updates_done(opt_state: PyTree, step: jax.Array) -> jax.Array:
    """The optimizer's own count, which skipped steps do not increase."""
    counts = optax.tree.get_all_with_path(opt_state, "count")
    return counts[0][1] if counts else step


def make_eval_step(plan: train_state.StatePlan) -> jax.stages.Wrapped:
    """Builds the jitted `(params, batch, carry) -> (sums, carry)`, without dropout.

    Sums are additive over batches: name -> (total, weight). The first carry comes from
    `initial_carry`.
    """
    objective = plan.objective

    def eval_step(params, batch, carry):
        _, outputs = objective(
            params,
            batch,
            objective.normalizers(batch),
            carry,
            jax.random.key(0),
            train=False,
        )
        return outputs

    return jax.jit(
        eval_step,
        in_shardings=(
            plan.shardings.params,
            plan.partitioner.batch_sharding,
            plan.shardings.carry,
        ),
        # Sums: replicated.
        out_shardings=(plan.shardings.step, plan.shardings.carry),
        compiler_options=plan.partitioner.compiler_options,
    )


def initial_carry(plan: train_state.StatePlan, batch_size: int) -> types.Carry:
    """The objective's carry before its first batch, with the plan's shardings."""
    create = jax.jit(
        lambda: plan.objective.initial_carry(batch_size),
        out_shardings=plan.shardings.carry,
    )
    return create()
