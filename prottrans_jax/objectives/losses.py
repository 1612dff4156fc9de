"""Losses per position, not reduced: each objective chooses what to average over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class CrossEntropy(NamedTuple):
    """Results of `softmax_cross_entropy` for each position.

    Attributes:
      loss: Training loss: smoothed cross entropy plus `z_loss`.
      nll: Negative log-likelihood of the target in nats, without smoothing or z-loss.
      z_loss: The part of `loss` that limits the scale of the logits.
      correct: Whether the target's logit is larger than all others.
    """

    loss: Float[Array, "*positions"]
    nll: Float[Array, "*positions"]
    z_loss: Float[Array, "*positions"]
    correct: Bool[Array, "*positions"]


def softmax_cross_entropy(
    logits: Float[Array, "*positions vocab"],
    targets: Int[Array, "*positions"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Cross entropy of softmax(logits) with smoothed one-hot targets, float32.

    As in T5X: the probability `label_smoothing` is spread over the vocab - 1 other
    classes; the entropy of the smoothed target is subtracted, so that a perfect model
    has loss 0; `z_loss` * log(sum(exp(logits)))^2 is added (Mesh TensorFlow).

    Args:
      logits: Unnormalised log-probabilities, any float type.
      targets: Class at each position.
      label_smoothing: Probability moved from the target to the others, in [0, 1).
      z_loss: Weight of the squared log-normaliser; T5X's pre-training uses 1e-4.

    Returns:
      Values per position.
    """
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    # Not a gather: its gradient is a scatter, and it fails for a sharded vocabulary.
    is_target = jnp.arange(vocab) == targets[..., None]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = log_z - target_logit
    loss = nll
    if label_smoothing:
        confidence = 1.0 - label_smoothing
        rest = label_smoothing / (vocab - 1)
        entropy = -confidence * jnp.log(confidence) - label_smoothing * jnp.log(rest)
        # sum_j p_j (log_z - logit_j) with p = confidence at the target, rest elsewhere
        all_nll = vocab * log_z - jnp.sum(logits, axis=-1)
        loss = (confidence - rest) * nll + rest * all_nll - entropy
    z = z_loss * jnp.square(log_z)
    # Strictly larger: a dead model, whose logits are all equal, is never correct.
    correct = target_logit > jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    return CrossEntropy(loss + z, nll, z, correct)


def sigmoid_cross_entropy(
    logits: Float[Array, "*positions"], labels: Bool[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """Cross entropy of sigmoid(logits) with labels, in nats, float32."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(labels, -logits, logits))


def weighted(
    values: Float[Array, "*positions"] | Bool[Array, "*positions"],
    weights: Float[Array, "*positions"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A metric: the weighted sum of the values, and the sum of the weights."""
    return total(values * weights), total(weights)


def total(values: jax.Array) -> Float[Array, ""]:
    """Sum, float32."""
    return jnp.sum(values.astype(jnp.float32))


def divide(summed: Float[Array, ""], normalizer: Float[Array, ""]) -> Float[Array, ""]:
    """A mean; 0, not NaN, for a batch without targets."""
    return summed / jnp.maximum(normalizer, 1e-9)
