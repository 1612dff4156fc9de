import gzip

import numpy as np
import pytest

from prottrans_jax.data import random_bits
from prottrans_jax.data.rows import packing


def _bits(count):
    return random_bits.fold(random_bits.key(4), np.arange(count))


def test_split_keeps_every_residue_once():
    lengths = np.array([3, 7, 0, 16, 8])
    record, start, length = packing.cut(lengths, 7, "split", _bits(5))
    np.testing.assert_array_equal(record, [0, 1, 2, 3, 3, 3, 4, 4])
    np.testing.assert_array_equal(start, [0, 0, 0, 0, 7, 14, 0, 7])
    np.testing.assert_array_equal(length, [3, 7, 0, 7, 7, 2, 7, 1])


def test_crop_keeps_one_window_that_may_lie_anywhere():
    lengths = np.full(6000, 9)
    lengths[0] = 4
    record, start, length = packing.cut(lengths, 7, "crop", _bits(6000))
    np.testing.assert_array_equal(record, np.arange(6000))
    assert (start[0], length[0]) == (0, 4)
    assert (length[1:] == 7).all()
    counts = np.bincount(start[1:], minlength=3)
    assert counts.size == 3
    assert (np.abs(counts - 1999.7) < 5 * np.sqrt(6000 * 2 / 9)).all()


def test_unknown_way_to_cut_is_refused():
    with pytest.raises(ValueError, match="'trim' is not one of split, crop"):
        packing.cut(np.array([3]), 7, "trim", _bits(1))


@pytest.mark.parametrize("capacities", [(50, 50), (40, 13)])
def test_no_row_overflows_and_no_piece_is_lost(capacities):
    generator = np.random.default_rng(3)
    inputs = generator.integers(1, 38, 400)
    lengths = np.stack([inputs, -(-inputs // 4) + 1], axis=1)
    rows, count = packing.pack(lengths, capacities)
    assert rows.shape == (400,)
    assert sorted(set(rows.tolist())) == list(range(count))
    for feature in range(2):
        used = np.bincount(rows, weights=lengths[:, feature])
        assert used.max() <= capacities[feature]


def test_pieces_that_fit_together_exactly_fill_their_rows():
    # By hand: 6+4, 5+5, 7+3, and 8 alone.
    lengths = np.array([5, 4, 7, 8, 3, 6, 5])
    rows, count = packing.pack(lengths[:, None], (10,))
    assert count == 4
    assert sorted(np.bincount(rows, weights=lengths).tolist()) == [8, 10, 10, 10]


def test_piece_longer_than_a_row_is_refused():
    with pytest.raises(
        ValueError, match=r"piece 1 has \(11,\) tokens, but a row holds"
    ):
        packing.pack(np.array([[4], [11]]), (10,))


def test_at_least_97_percent_of_tokens_are_residues(shared):
    path = shared / "data" / "corpus" / "sprot50_valid.fasta.gz"
    with gzip.open(path, "rt") as f:
        texts = f.read().split(">")[1:]
    lengths = np.array([len("".join(t.splitlines()[1:])) for t in texts])
    assert lengths.sum() == 849022  # as the folder's README says
    for long_sequences in packing.LONG_SEQUENCES:
        _, _, length = packing.cut(lengths, 511, long_sequences, _bits(len(lengths)))
        _, rows = packing.pack(length[:, None] + 1, (512,))  # </s>
        assert length.sum() / (rows * 512) >= 0.97
