"""Filters against computation by hand, draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.generation import sampling

NONE = sampling.NO_TOKEN
# Probabilities 0.4, 0.1, 0.3, 0.15, 0.05.
LOGITS = jnp.log(jnp.array([[0.4, 0.1, 0.3, 0.15, 0.05]]))


def kept(scores):
    return np.flatnonzero(np.isfinite(np.asarray(scores)[0])).tolist()


def choose(settings, logits, history=((NONE,),), length=0, number=1, allowed=None):
    rows = jnp.broadcast_to(logits, (number, logits.shape[1]))
    return sampling.choose(
        sampling.Sampling(**settings),
        rows,
        jnp.ones_like(rows, bool) if allowed is None else jnp.asarray([allowed]),
        jnp.broadcast_to(jnp.asarray(history), (number, len(history[0]))),
        jnp.int32(length),
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(number)),
    )


@pytest.mark.parametrize(("k", "expected"), [(1, [0]), (3, [0, 2, 3]), (9, range(5))])
def test_top_k_keeps_the_k_most_probable(k, expected):
    assert kept(sampling.keep_top_k(LOGITS, k)) == list(expected)


@pytest.mark.parametrize(
    ("p", "expected"),
    # 0.4; 0.4 + 0.3 = 0.7; + 0.15 = 0.85; + 0.1 = 0.95.
    [
        (0.1, [0]),
        (0.6, [0, 2]),
        (0.75, [0, 2, 3]),
        (0.9, [0, 1, 2, 3]),
        (1.0, range(5)),
    ],
)
def test_top_p_keeps_tokens_until_their_probabilities_reach_p(p, expected):
    assert kept(sampling.keep_top_p(LOGITS, p)) == list(expected)


def test_a_run_ends_at_its_longest():
    history = jnp.array([[2, 4, 4, 4, 0], [4, 4, 1, 4, 0], [NONE, NONE, NONE, 4, 0]])
    excluded = sampling.run_to_end(history, jnp.int32(4), 3, 5)
    assert np.argwhere(np.asarray(excluded)).tolist() == [[0, 4]]


def test_an_ngram_does_not_occur_twice():
    # After 1 2 came 3, and then 0; the 4 is beyond the filled positions.
    history = jnp.array([[1, 2, 3, 1, 2, 0, 1, 2, 4], [NONE] * 6 + [1, 2, 4]])
    excluded = sampling.repeated_ngrams(history, jnp.int32(8), 3, 5)
    assert np.argwhere(np.asarray(excluded)).tolist() == [[0, 0], [0, 3]]


def test_guards_that_exclude_every_token_do_not_apply():
    logits = jnp.array([[1.0, 5.0, 2.0]])
    allowed = [False, True, False]
    tokens = choose({"max_run": 1}, logits, ((1,),), length=1, allowed=allowed)
    assert tokens.tolist() == [1]


def test_greedy_takes_the_most_probable_token_that_is_allowed():
    allowed = [False, True, True, True, True]
    assert choose({"greedy": True}, LOGITS, allowed=allowed).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.1, 0.3, 0.15, 0.05]),
        # Square roots of the probabilities, normalised.
        ({"temperature": 2.0}, [0.299, 0.149, 0.259, 0.183, 0.106]),
        # 0.4 and 0.3 of 0.7.
        ({"top_k": 2}, [0.5714, 0, 0.4286, 0, 0]),
    ],
    ids=["plain", "temperature", "top-k"],
)
def test_frequencies_of_draws_are_those_of_the_distribution(settings, expected):
    number = 4000
    tokens = np.asarray(choose(settings, LOGITS, number=number))
    counts = np.bincount(tokens, minlength=5)
    expected = number * np.array(expected) / sum(expected)
    assert not counts[expected == 0].any()
    used = expected > 0
    chi_square = ((counts - expected)[used] ** 2 / expected[used]).sum()
    # Quantiles of 0.999 for 1 and 4 degrees of freedom.
    assert chi_square < {2: 10.83, 5: 18.47}[used.sum()]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"top_p": 1.5}, {"top_p": 0}, {"top_k": 0}, {"max_run": 0}],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        sampling.Sampling(**settings)
