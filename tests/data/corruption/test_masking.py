import doctest

import numpy as np
import pytest

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import masking, ngrams
from prottrans_jax.proteins import vocabulary

RESIDUES = vocabulary.PROT_BERT.residue_ids
CLS, SEP, MASK = 2, 3, 4


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


def _assert_share(count, total, probability):
    assert abs(count - total * probability) < 5 * np.sqrt(
        total * probability * (1 - probability)
    )


def test_worked_examples_in_docstrings():
    result = doctest.testmod(masking)
    assert result.attempted > 10
    assert result.failed == 0


def test_15_percent_are_picked_80_10_10():
    ids, lengths, keys = _pieces(np.arange(1, 500))
    out = masking.TokenMasking().corrupt(ids, lengths, keys)
    np.testing.assert_array_equal(out.lengths, lengths + 2)
    ends = np.cumsum(lengths + 2)
    assert (out["target_tokens"][ends - 1] == SEP).all()
    assert (out["target_tokens"][ends - lengths - 2] == CLS).all()
    special = np.isin(np.arange(ends[-1]), [ends - 1, ends - lengths - 2])
    np.testing.assert_array_equal(out["target_tokens"][~special], ids)
    assert (out["corrupted"][special] == 0).all()

    kinds = np.bincount(out["corrupted"], minlength=4)
    picked = kinds[1:].sum()
    _assert_share(picked, len(ids), 0.15)
    for kind, share in ((1, 0.8), (2, 0.1), (3, 0.1)):
        _assert_share(kinds[kind], picked, share)
    inputs, targets = out["input_tokens"], out["target_tokens"]
    np.testing.assert_array_equal(out["corrupted"] == 1, inputs == MASK)
    changed = (inputs != targets) & (inputs != MASK)
    np.testing.assert_array_equal(out["corrupted"] == 2, changed)
    assert np.isin(inputs[changed], RESIDUES).all()
    np.testing.assert_array_equal(out["loss_weights"], out["corrupted"] > 0)
    for name in ("token_types", "order_targets", "order_weights"):
        assert not out[name].any()


@pytest.mark.parametrize(
    ("mask", "random", "expected"),
    [(1.0, 0.0, {1}), (0.85, 0.0, {1, 3}), (0.0, 1.0, {2}), (0.0, 0.0, {3})],
)
def test_shares_may_be_0_or_1(mask, random, expected):
    corruption = masking.TokenMasking(mask_probability=mask, random_probability=random)
    out = corruption.corrupt(*_pieces([900, 50]))
    assert set(out["corrupted"]) - {0} == expected


def test_picked_residues_depend_only_on_key_and_position():
    ids, lengths, keys = _pieces([40, 33, 7])
    whole = masking.TokenMasking().corrupt(ids, lengths, keys)
    alone = masking.TokenMasking().corrupt(ids[40:73], lengths[1:2], keys[1:2])
    for name, values in alone.values.items():
        np.testing.assert_array_equal(
            values, _split(whole[name], whole.lengths)[1], err_msg=name
        )
    # As a pair the same residues are picked.
    pairs = masking.TokenMasking(pairs=True, swap_probability=0.0)
    paired = pairs.corrupt(ids[40:73], lengths[1:2], keys[1:2])
    inside = np.delete(paired["corrupted"], np.flatnonzero(paired["input_tokens"] == 3))
    np.testing.assert_array_equal(inside, alone["corrupted"][:-1])


def test_pairs_hold_both_parts_of_a_piece_in_the_labelled_order():
    ids, lengths, keys = _pieces([1, 2, 3, *range(4, 300)], seed=1)
    out = masking.TokenMasking(pairs=True).corrupt(ids, lengths, keys)
    np.testing.assert_array_equal(out.lengths, lengths + 2 + (lengths > 1))
    swapped, first_parts = [], []
    for i, (original, tokens, types, targets, weights) in enumerate(
        zip(
            _split(ids, lengths),
            *(
                _split(out[name], out.lengths)
                for name in (
                    "target_tokens",
                    "token_types",
                    "order_targets",
                    "order_weights",
                )
            ),
            strict=True,
        )
    ):
        assert tokens[0] == CLS and tokens[-1] == SEP
        assert not targets[1:].any() and not weights[1:].any()
        if lengths[i] == 1:
            assert not weights[0] and not types.any()
            continue
        assert weights[0] == 1
        (middle, _) = np.flatnonzero(tokens == SEP)
        np.testing.assert_array_equal(types, np.arange(len(tokens)) > middle)
        parts = [tokens[1:middle], tokens[middle + 1 : -1]]
        assert min(map(len, parts)) > 0
        if targets[0]:
            parts.reverse()
        np.testing.assert_array_equal(np.concatenate(parts), original)
        swapped.append(targets[0])
        first_parts.append(len(parts[0]) / lengths[i])
    _assert_share(sum(swapped), len(swapped), 0.5)
    assert abs(np.mean(first_parts) - 0.5) < 5 / np.sqrt(12 * len(first_parts))


def test_pieces_that_fit_fill_the_row_exactly():
    for pairs in (False, True):
        corruption = masking.TokenMasking(pairs=pairs)
        for capacity in range(3, 20):
            longest = corruption.max_residues(capacity)
            assert (corruption.num_tokens(np.arange(longest + 1)) <= capacity).all()
            assert corruption.num_tokens(np.array([longest + 1]))[0, 0] > capacity
        with pytest.raises(ValueError, match="2 tokens have no room for one residue"):
            corruption.max_residues(2)


def test_ngram_lengths_have_probability_1_over_n_and_cover_15_percent():
    ids, lengths, keys = _pieces([1000] * 300, seed=2)
    corruption = masking.TokenMasking(max_ngram=3)
    out = corruption.corrupt(ids, lengths, keys)
    _assert_share((out["corrupted"] > 0).sum() / 3, len(ids) / 3, 0.15)
    # Runs by themselves: where nothing before it can have begun one.
    bits = random_bits.fold(random_bits.key(5), np.arange(200_000))
    counts = np.bincount(ngrams.lengths_from(bits, 3), minlength=4)
    for n, share in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):  # 1 : 1/2 : 1/3
        _assert_share(counts[n], 200_000, share)
    assert ngrams.mean_length(3) == pytest.approx(18 / 11)


def test_ngrams_are_chosen_from_left_to_right_and_end_with_their_part():
    never, always = np.uint64(2**64 - 1), np.uint64(0)
    three, one = np.uint64(2**64 - 1), np.uint64(0)
    #            a run of 3 covers the next two wishes; the fourth begins its own
    bits = np.array([never, always, always, always, always, never, always], np.uint64)
    sizes = np.array([one, three, three, three, one, one, three], np.uint64)
    picked = ngrams.pick(bits, sizes, np.array([7]), 0.15, 3)
    assert picked.tolist() == [False, True, True, True, True, False, True]
    # The same, cut after the second residue: the run ends, and another begins there.
    picked = ngrams.pick(bits, sizes, np.array([2, 5]), 0.15, 3)
    assert picked.tolist() == [False, True, True, True, True, False, True]
    bits[2] = never
    picked = ngrams.pick(bits, sizes, np.array([2, 5]), 0.15, 3)
    assert picked.tolist() == [False, True, False, True, True, True, True]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"mask_probability=0\.9 and random_prob"):
        masking.TokenMasking(mask_probability=0.9, random_probability=0.2)
    with pytest.raises(ValueError, match="max_ngram=0"):
        masking.TokenMasking(max_ngram=0)
    with pytest.raises(ValueError, match=r"noise_density=1\.0"):
        masking.TokenMasking(noise_density=1.0)
    with pytest.raises(ValueError, match=r"ProtT5 has no \[CLS\]"):
        masking.TokenMasking(vocabulary=vocabulary.PROT_T5).corrupt(*_pieces([4]))
