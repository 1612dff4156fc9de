"""Annotations of shapes are checked while tests run; see `type_checks.py`."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from prottrans_jax import partitioning
from prottrans_jax.objectives import losses
from prottrans_jax.optimizers import algorithms
from prottrans_jax.training import train_state


def test_a_call_with_a_wrong_shape_is_refused():
    logits = jnp.zeros((2, 5, 7))
    # Broadcasting would accept these targets and give the loss of others.
    targets = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'targets'"):
        losses.softmax_cross_entropy(logits, targets)


def test_an_object_without_the_methods_of_an_objective_is_refused():
    optimizer = algorithms.AdamW(learning_rate=0.1)
    shapes = {"input_tokens": jax.ShapeDtypeStruct((2, 5), jnp.int32)}
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'objective'"):
        train_state.plan(optimizer, optimizer, partitioning.Partitioner(), shapes)
