import doctest

import numpy as np
import pytest

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import permuted
from prottrans_jax.proteins import vocabulary

RESIDUES = vocabulary.PROT_XLNET.residue_ids


def _pieces(lengths, seed=0):
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    return (
        generator.choice(RESIDUES, lengths.sum()).astype(np.uint8),
        lengths,
        random_bits.fold(random_bits.key(seed), np.arange(len(lengths))),
    )


def _split(values, lengths):
    return np.split(values, np.cumsum(lengths)[:-1])


def test_worked_example_in_docstring():
    result = doctest.testmod(permuted)
    assert result.attempted > 4
    assert result.failed == 0


def test_input_is_the_piece_followed_by_sep_and_cls():
    ids, lengths, keys = _pieces([1, 50, 7])
    out = permuted.PermutationTargets().corrupt(ids, lengths, keys)
    for original, tokens, targets, types in zip(
        _split(ids, lengths),
        _split(out["input_tokens"], out.lengths),
        _split(out["target_tokens"], out.lengths),
        _split(out["token_types"], out.lengths),
        strict=True,
    ):
        np.testing.assert_array_equal(tokens, [*original, 4, 3])
        np.testing.assert_array_equal(targets, tokens)
        np.testing.assert_array_equal(types, [*np.zeros(len(original) + 1), 2])


@pytest.mark.parametrize("fraction", [2, 6])
def test_one_of_k_residues_is_predicted_at_every_place(fraction):
    ids, lengths, keys = _pieces([90] * 4000)
    corruption = permuted.PermutationTargets(inverse_fraction=fraction)
    out = corruption.corrupt(ids, lengths, keys)
    weights = out["loss_weights"].reshape(4000, 92)
    assert not weights[:, 90:].any()
    ranks = out["factorization_ranks"].reshape(4000, 92)
    np.testing.assert_array_equal(weights > 0, ranks >= 0)
    share = 1 / fraction
    deviation = np.sqrt(share * (1 - share) / 4000)
    # Many places together are far less random than one.
    assert abs(weights[:, :90].mean() - share) < 3 * deviation
    assert (np.abs(weights[:, :90].mean(0) - share) < 5 * deviation).all()


def test_run_lengths_1_to_5_have_probability_1_over_n():
    _, lengths, keys = _pieces([60_000], seed=1)
    corruption = permuted.PermutationTargets(inverse_fraction=30)
    predicted = corruption.predicted(lengths, keys)
    # So far apart that two runs hardly ever touch.
    runs = np.split(predicted, np.flatnonzero(np.diff(predicted) > 1) + 1)
    counts = np.bincount([len(r) for r in runs], minlength=6)[1:6]
    expected = len(runs) / np.arange(1, 6) / (137 / 60)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 4 df, p = 0.001


def test_every_order_of_the_predicted_is_equally_likely():
    ids, lengths, keys = _pieces([18] * 30_000, seed=2)
    out = permuted.PermutationTargets().corrupt(ids, lengths, keys)
    orders = {}
    for ranks in out["factorization_ranks"].reshape(-1, 20):
        ranks = ranks[ranks >= 0]
        assert sorted(ranks) == list(range(len(ranks)))
        if len(ranks) == 3:
            orders[tuple(ranks)] = orders.get(tuple(ranks), 0) + 1
    counts = np.array(list(orders.values()))
    assert len(counts) == 6
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 20.5  # 5 df


def test_prediction_depends_only_on_key_and_position():
    ids, lengths, keys = _pieces([40, 33, 7])
    corruption = permuted.PermutationTargets()
    whole = corruption.corrupt(ids, lengths, keys)
    alone = corruption.corrupt(ids[40:73], lengths[1:2], keys[1:2])
    for name, values in alone.values.items():
        np.testing.assert_array_equal(
            values, _split(whole[name], whole.lengths)[1], err_msg=name
        )


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="inverse_fraction=1 is below 2"):
        permuted.PermutationTargets(inverse_fraction=1)
    with pytest.raises(ValueError, match="max_span=0"):
        permuted.PermutationTargets(max_span=0)
    with pytest.raises(ValueError, match="no <cls> and <sep>"):
        permuted.PermutationTargets(vocabulary=vocabulary.PROT_T5).corrupt(
            *_pieces([4])
        )
