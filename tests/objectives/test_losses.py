"""Cross entropy against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from prottrans_jax.objectives import losses

LOGITS = np.array([[2.0, -1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0], [9.0, 1.0, -7.0, 2.0]])
TARGETS = np.array([3, 1, 2])


def test_loss_is_the_smoothed_cross_entropy_plus_z_loss():
    smoothing, z_weight = 0.1, 1e-2
    soft = np.full((3, 4), smoothing / 3)
    soft[np.arange(3), TARGETS] = 1 - smoothing
    log_z = np.log(np.exp(LOGITS).sum(axis=-1))
    log_p = LOGITS - log_z[:, None]
    # The entropy of the soft target goes, so that a perfect model has loss 0.
    expected = -(soft * log_p).sum(-1) + (soft * np.log(soft)).sum(-1)
    result = losses.softmax_cross_entropy(
        jnp.asarray(LOGITS),
        jnp.asarray(TARGETS),
        label_smoothing=smoothing,
        z_loss=z_weight,
    )
    np.testing.assert_allclose(result.nll, -log_p[np.arange(3), TARGETS], rtol=1e-6)
    np.testing.assert_allclose(result.z_loss, z_weight * log_z**2, rtol=1e-6)
    np.testing.assert_allclose(
        result.loss, expected + z_weight * log_z**2, rtol=1e-5, atol=1e-6
    )
    assert result.correct.tolist() == [True, False, False]


def test_huge_logits_give_finite_losses_and_gradients():
    logits = jnp.array([[1e4, -1e4, 0.0], [-3e38, 0.0, 3e4]])
    targets = jnp.array([1, 2])

    def loss(logits):
        result = losses.softmax_cross_entropy(logits, targets, label_smoothing=0.1)
        return result.loss[0]

    assert float(losses.softmax_cross_entropy(logits, targets).nll[0]) == 2e4
    assert np.isfinite(jax.grad(loss)(logits)).all()


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 300), jnp.bfloat16)
    nll = losses.softmax_cross_entropy(logits, jnp.array([7])).nll
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, np.log(300), rtol=1e-6)
