"""How the next token is chosen from the logits of a model.

In this order: tokens that are not allowed; guards against repeats; temperature; the k
most probable tokens; the nucleus. The rest is sampled.

Hugging Face's repetition penalty is not among the guards: it lowers every residue that
has occurred, and after a few dozen residues nearly all 20 have.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prottrans_jax.config import setting_types

# Token of a history before the first of its row.
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
      greedy: Whether the most probable token is taken; the settings of the
        distribution then have no effect.
      temperature: Logits are divided by it; more than 0.
      top_k: Number of most probable tokens that are kept; None: all.
      top_p: The most probable tokens are kept until their probabilities add up to this
        (nucleus; Holtzman et al. 2020). None: all.
      max_run: Longest run of one residue; None: no limit.
      no_repeat_ngram: Length of the stretches that do not occur twice in a protein, as
        Hugging Face's `no_repeat_ngram_size`; None: no limit.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_run: int | None = None
    no_repeat_ngram: int | None = None

    def __post_init__(self):
        setting_types.check_fields(self)
        setting_types.check_range("temperature", self.temperature, 0, exclusive=True)
        setting_types.check_range("top_p", self.top_p, 0, exclusive=True)
        if self.top_p is not None and self.top_p > 1:
            raise ValueError(f"top_p={self.top_p}: a share, at most 1.")
        for name in ("top_k", "max_run", "no_repeat_ngram"):
            setting_types.check_range(name, getattr(self, name), 1)


DEFAULT = Sampling()


def choose(
    settings: Sampling,
    logits: Float[Array, "batch vocab"],
    allowed: Bool[Array, "batch vocab"],
    history: Int[Array, "batch history"],
    length: Int[Array, ""],
    keys: Key[Array, " batch"],
) -> Int[Array, " batch"]:
    """The next token of each row; a row's draw depends on its own key only.

    Args:
      settings: How tokens are chosen.
      logits: Of the model.
      allowed: Tokens that may come next, at least one in each row.
      history: Tokens of each row; `NO_TOKEN` before its first.
      length: Number of positions of `history` that are filled.
      keys: Key of each row's draw.
    """
    scores = jnp.where(allowed, logits, -jnp.inf)
    guarded = scores
    vocab = logits.shape[1]
    if settings.max_run is not None:
        repeats = run_to_end(history, length, settings.max_run, vocab)
        guarded = jnp.where(repeats, -jnp.inf, guarded)
    if settings.no_repeat_ngram is not None:
        repeats = repeated_ngrams(history, length, settings.no_repeat_ngram, vocab)
        guarded = jnp.where(repeats, -jnp.inf, guarded)
    # If the guards exclude every token, they do not apply.
    has_any = jnp.any(guarded > -jnp.inf, axis=-1, keepdims=True)
    scores = jnp.where(has_any, guarded, scores)
    if settings.greedy:
        return jnp.argmax(scores, axis=-1)
    scores = scores / settings.temperature
    if settings.top_k is not None:
        scores = keep_top_k(scores, settings.top_k)
    if settings.top_p is not None:
        scores = keep_top_p(scores, settings.top_p)
    return jax.vmap(jax.random.categorical)(keys, scores)


def keep_top_k(
    scores: Float[Array, "batch vocab"], k: int
) -> Float[Array, "batch vocab"]:
    """Sets all but the k highest scores to -inf; scores equal to the k-th are kept."""
    lowest = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]
    return jnp.where(scores < lowest, -jnp.inf, scores)


def keep_top_p(
    scores: Float[Array, "batch vocab"], p: float
) -> Float[Array, "batch vocab"]:
    """Keeps the smallest set of most probable tokens with a probability of at least p.

    Tokens as probable as the last of the set are kept too.
    """
    probabilities = jax.nn.softmax(scores, axis=-1)
    ordered = -jnp.sort(-probabilities, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    # The first token is always in the set.
    lowest = jnp.min(jnp.where(before < p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(probabilities < lowest, -jnp.inf, scores)


def run_to_end(
    history: Int[Array, "batch history"], length: Int[Array, ""], run: int, vocab: int
) -> Bool[Array, "batch vocab"]:
    """The token that fills the last `run` positions of a row, if one token does."""
    last = _last(history, length, run)
    is_run = jnp.all(last == last[:, :1], axis=1)
    return is_run[:, None] & (jnp.arange(vocab) == last[:, :1])


def repeated_ngrams(
    history: Int[Array, "batch history"], length: Int[Array, ""], n: int, vocab: int
) -> Bool[Array, "batch vocab"]:
    """Tokens with which the last n - 1 of a row would form an n-gram that it has."""
    prefix = _last(history, length, n - 1)
    width = history.shape[1]
    # [batch, n, starts]: the n-gram at each start.
    grams = jnp.stack([history[:, i : width - n + 1 + i] for i in range(n)], axis=1)
    is_same = jnp.all(grams[:, :-1] == prefix[:, :, None], axis=1)
    is_same &= jnp.arange(grams.shape[2]) + n <= length
    is_next = grams[:, -1, :, None] == jnp.arange(vocab)
    return jnp.any(is_same[..., None] & is_next, axis=1)


def _last(history, length, number):
    """The last tokens of each row; those before the first are `NO_TOKEN`."""
    padded = jnp.pad(history, ((0, 0), (number, 0)), constant_values=NO_TOKEN)
    return jax.lax.dynamic_slice_in_dim(padded, length, number, axis=1)
