import doctest

import numpy as np
import pytest

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import iid_noise, span_corruption
from prottrans_jax.proteins import vocabulary

RESIDUES = vocabulary.PROT_T5.residue_ids
SENTINEL = 127  # <extra_id_0>


def _pieces(lengths, seed=0):
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    ids = generator.choice(RESIDUES, lengths.sum()).astype(np.uint8)
    return (
        ids,
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
    for module in (iid_noise, span_corruption):
        result = doctest.testmod(module)
        assert result.attempted > 5
        assert result.failed == 0


def test_iid_denoise_hides_15_percent_and_targets_are_the_original():
    ids, lengths, keys = _pieces(np.arange(1, 400))
    out = iid_noise.IidDenoise().corrupt(ids, lengths, keys)
    np.testing.assert_array_equal(out.input_lengths, lengths + 1)
    np.testing.assert_array_equal(out.target_lengths, lengths + 1)
    ends = np.cumsum(lengths + 1) - 1
    assert (out.targets[ends] == 1).all() and (out.inputs[ends] == 1).all()
    np.testing.assert_array_equal(np.delete(out.targets, ends), ids)
    assert (out.loss_weights == 1).all()

    noise = out.inputs != out.targets
    _assert_share(noise.sum(), len(ids), 0.15)
    masked = out.inputs == SENTINEL
    _assert_share(masked.sum(), noise.sum(), 0.9)
    np.testing.assert_array_equal(out.corrupted == 1, masked)
    np.testing.assert_array_equal(out.corrupted == 2, noise & ~masked)


def test_substitutes_are_the_19_other_amino_acids_evenly():
    ids = np.repeat(RESIDUES[[4, 19]], 60000).astype(np.uint8)
    lengths = np.full(600, 200)
    keys = random_bits.fold(random_bits.key(8), np.arange(600))
    out = iid_noise.IidDenoise(random_probability=0.5).corrupt(ids, lengths, keys)
    for original in RESIDUES[[4, 19]]:
        drawn = out.inputs[(out.corrupted == 2) & (out.targets == original)]
        counts = np.bincount(drawn, minlength=128)
        assert counts[original] == 0
        counts = counts[np.setdiff1d(RESIDUES, original)]
        assert counts.sum() == drawn.size > 4000
        expected = drawn.size / 19
        assert ((counts - expected) ** 2 / expected).sum() < 42.3  # 18 df, p = 0.001


def test_x_is_hidden_like_any_other_and_replaced_by_an_amino_acid():
    ids = np.full(4000, vocabulary.PROT_T5.x_id, np.uint8)
    key = random_bits.key(1)
    out = iid_noise.IidDenoise().corrupt(ids, np.array([4000]), key)
    substituted = out.inputs[out.corrupted == 2]
    assert substituted.size > 20
    assert np.isin(substituted, RESIDUES).all()


def test_all_ids_draws_as_the_t5_library_from_3_to_127():
    ids, lengths, keys = _pieces([500] * 200)
    corruption = iid_noise.IidDenoise(random_tokens="all_ids", random_probability=0.5)
    out = corruption.corrupt(ids, lengths, keys)
    _assert_share(
        (out.inputs[out.inputs != out.targets] >= 28).mean() * 1000, 1000, 0.9
    )
    drawn = out.inputs[out.corrupted == 2]
    assert drawn.min() == 3 and drawn.max() == 126
    # Ids that no residue has are drawn too: 24 .. 27 are B, O, U, Z.
    assert np.isin([24, 25, 26, 27, 28, 100], drawn).all()
    # A draw of the token itself leaves it as it was.
    assert (out.inputs[out.corrupted == 0] == out.targets[out.corrupted == 0]).all()


def test_masked_reconstruction_weighs_hidden_positions_only():
    ids, lengths, keys = _pieces([30, 200, 77])
    out = iid_noise.MaskedReconstruction().corrupt(ids, lengths, keys)
    masked = out.inputs == SENTINEL
    np.testing.assert_array_equal(out.inputs != out.targets, masked)
    np.testing.assert_array_equal(out.loss_weights, masked.astype(np.float32))
    # The same key hides the same positions in both objectives.
    iid = iid_noise.IidDenoise().corrupt(ids, lengths, keys)
    np.testing.assert_array_equal(iid.corrupted > 0, masked)


def test_noise_is_independent_of_neighbours_and_position():
    ids, lengths, keys = _pieces([100] * 3000)
    out = iid_noise.IidDenoise().corrupt(ids, lengths, keys)
    noise = (out.corrupted > 0).reshape(3000, 101)[:, :100]
    _assert_share((noise[:, 1:] & noise[:, :-1]).sum(), 3000 * 99, 0.15**2)
    by_position = noise.sum(0)
    assert (np.abs(by_position - 450) < 5 * np.sqrt(3000 * 0.15 * 0.85)).all()


# From T5's published algorithm by hand: noise = round(0.15 n), from 1 to n - 1, halves
# to even; spans = max(1, round(noise / mean)); inputs n - noise + spans + 1, targets
# noise + spans + 1. Last, random_spans_helper(512) of the T5 library: 568 -> 512, 114.
@pytest.mark.parametrize(
    ("mean", "length", "inputs", "targets"),
    [
        (3.0, 2, 3, 3),
        (3.0, 10, 10, 4),  # noise 2 (1.5 to even), span 1
        (3.0, 30, 28, 6),  # noise 4 (4.5 to even), span 1
        (3.0, 100, 91, 21),  # noise 15, spans 5
        (1.0, 100, 101, 31),  # noise 15, spans 15
        (3.0, 568, 512, 114),
    ],
)
def test_span_corruption_lengths_are_t5s(mean, length, inputs, targets):
    corruption = span_corruption.SpanCorruption(mean_span_length=mean)
    np.testing.assert_array_equal(
        corruption.num_tokens(np.array([length])), [[inputs, targets]]
    )
    out = corruption.corrupt(*_pieces([length, 7]))
    assert (out.input_lengths[0], out.target_lengths[0]) == (inputs, targets)
    assert len(out.inputs) == out.input_lengths.sum()
    assert len(out.targets) == out.target_lengths.sum()


@pytest.mark.parametrize("mean", [1.0, 3.0])
def test_spans_put_back_at_their_sentinels_give_the_original(mean):
    ids, lengths, keys = _pieces([2, 40, 511, 3, 99])
    out = span_corruption.SpanCorruption(mean_span_length=mean).corrupt(
        ids, lengths, keys
    )
    for original, inputs, targets, corrupted in zip(
        _split(ids, lengths),
        _split(out.inputs, out.input_lengths),
        _split(out.targets, out.target_lengths),
        _split(out.corrupted, out.target_lengths),
        strict=True,
    ):
        assert inputs[-1] == targets[-1] == 1
        inputs, targets = inputs[:-1].tolist(), targets[:-1].tolist()
        sentinels = [t for t in targets if t >= 28]
        assert sentinels == list(range(127, 127 - len(sentinels), -1))
        assert [t for t in inputs if t >= 28] == sentinels
        borders = [targets.index(s) for s in sentinels] + [len(targets)]
        restored = []
        for token in inputs:
            if token < 28:
                restored.append(token)
            else:
                k = 127 - token
                span = targets[borders[k] + 1 : borders[k + 1]]
                assert span
                restored += span
        np.testing.assert_array_equal(restored, original)
        assert corrupted.tolist() == [int(t < 28) for t in targets] + [0]


def test_all_ways_to_cut_into_spans_are_equally_likely():
    # 20 residues, mean 1.5: noise 3 in 2 spans. Noise: 1+2 or 2+1; the rest, 17 in two
    # non-empty parts, the first one 1 .. 16.
    count = 8000
    ids, lengths, keys = _pieces([20] * count)
    out = span_corruption.SpanCorruption(mean_span_length=1.5).corrupt(
        ids, lengths, keys
    )
    inputs = out.inputs.reshape(count, -1)
    first = (inputs == 127).argmax(1)
    counts = np.bincount(first, minlength=17)[1:17]
    assert counts.sum() == count
    assert ((counts - 500.0) ** 2 / 500.0).sum() < 37.7  # 15 df, p = 0.001
    second = (out.targets.reshape(count, -1) == 126).argmax(1) - 1
    _assert_share((second == 1).sum(), count, 0.5)


def test_pieces_too_short_for_noise_are_shown_as_they_are():
    ids, lengths, keys = _pieces([0, 1])
    out = span_corruption.SpanCorruption().corrupt(ids, lengths, keys)
    np.testing.assert_array_equal(out.inputs, [1, ids[0], 1])
    np.testing.assert_array_equal(out.targets, [1, 127, 1])
    for corruption in (iid_noise.IidDenoise(), iid_noise.MaskedReconstruction()):
        out = corruption.corrupt(ids, lengths, keys)
        np.testing.assert_array_equal(out.targets, [1, ids[0], 1])


def test_longest_piece_fits_the_row_and_the_sentinels():
    assert iid_noise.IidDenoise().max_residues(512, 512) == 511
    assert iid_noise.IidDenoise().max_residues(512, 300) == 299
    spans = span_corruption.SpanCorruption()
    assert spans.max_residues(512, 114) == 568  # T5's random_spans_helper
    single = span_corruption.SpanCorruption(mean_span_length=1.0)
    longest = single.max_residues(2000, 2000)
    assert single.counts(np.array([longest]))[1] == 100
    assert single.counts(np.array([longest + 1]))[1] > 100
    with pytest.raises(ValueError, match="Cut into shorter pieces"):
        single.corrupt(*_pieces([longest + 1]))
    with pytest.raises(ValueError, match="no room for one residue"):
        iid_noise.IidDenoise().max_residues(1, 512)


def test_a_piece_is_corrupted_the_same_way_among_any_others():
    ids, lengths, keys = _pieces([31, 58, 12, 77])
    parts = _split(ids, lengths)
    for corruption in (iid_noise.IidDenoise(), span_corruption.SpanCorruption()):
        together = corruption.corrupt(ids, lengths, keys)
        alone = corruption.corrupt(parts[2], lengths[2:3], keys[2:3])
        np.testing.assert_array_equal(
            _split(together.inputs, together.input_lengths)[2], alone.inputs
        )
        np.testing.assert_array_equal(
            _split(together.targets, together.target_lengths)[2], alone.targets
        )


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="neither 'amino_acids'"):
        iid_noise.IidDenoise(random_tokens="any")
    with pytest.raises(ValueError, match=r"noise_density=1\.5"):
        iid_noise.IidDenoise(noise_density=1.5)
    with pytest.raises(ValueError, match="ProtBert has no </s>"):
        iid_noise.IidDenoise(
            vocabulary=vocabulary.PROT_BERT, random_probability=0.0
        ).corrupt(*_pieces([5]))
