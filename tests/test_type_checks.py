"""Annotations of shapes are checked while tests run; see `type_checks.py`."""

import jax.numpy as jnp
import jaxtyping
import pytest

from prottrans_jax.objectives import losses


def test_a_call_with_a_wrong_shape_is_refused():
    logits = jnp.zeros((2, 5, 7))
    # Broadcasting would accept these targets and give the loss of others.
    targets = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'targets'"):
        losses.softmax_cross_entropy(logits, targets)
