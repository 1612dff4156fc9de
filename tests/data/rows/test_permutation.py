import numpy as np
import pytest

from prottrans_jax.data import random_bits
from prottrans_jax.data.rows import permutation


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 1000, 4097])
def test_every_element_stands_at_exactly_one_position(size):
    order = permutation.permute(np.arange(size), size, random_bits.key(5, 1))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_order_of_some_records_is_computed_without_the_others():
    key = random_bits.key(11, 2)
    order = permutation.permute(np.arange(3001), 3001, key)
    picked = np.array([2999, 4, 17, 1500])
    np.testing.assert_array_equal(permutation.permute(picked, 3001, key), order[picked])


def test_epochs_and_seeds_have_unrelated_orders():
    size = 5003
    orders = [
        permutation.permute(np.arange(size), size, random_bits.key(seed, epoch))
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    for i in range(3):
        correlation = np.corrcoef(np.arange(size), orders[i])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(size)
        for j in range(i):
            # Matches of two random orders are Poisson(1).
            assert (orders[i] == orders[j]).sum() < 8
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 5 / np.sqrt(size)


def test_one_call_may_mix_epochs():
    size = 37
    keys = np.concatenate([random_bits.key(3, e) for e in (0, 1)])
    mixed = permutation.permute(
        np.tile(np.arange(size), 2), size, np.repeat(keys, size)
    )
    for epoch in (0, 1):
        np.testing.assert_array_equal(
            mixed[epoch * size : (epoch + 1) * size],
            permutation.permute(np.arange(size), size, keys[epoch : epoch + 1]),
        )


def test_each_record_is_equally_likely_at_each_place():
    size, epochs = 11, 4000
    keys = np.concatenate([random_bits.key(9, e) for e in range(epochs)])
    orders = permutation.permute(
        np.tile(np.arange(size), epochs), size, np.repeat(keys, size)
    ).reshape(epochs, size)
    counts = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    expected = epochs / size
    # chi-square with 100 degrees of freedom: 149.4 has probability 0.001
    assert ((counts - expected) ** 2 / expected).sum() < 149.4


def test_position_outside_is_refused():
    with pytest.raises(ValueError, match="positions 2 to 9 of a permutation of 9"):
        permutation.permute(np.array([2, 9]), 9, random_bits.key(0))


def test_bits_are_those_of_splitmix64():
    # First outputs for seed 1234567, as published with the reference implementation
    # (Vigna, prng.di.unimi.it/splitmix64.c) and repeated on Rosetta Code.
    draws = random_bits.fold(np.uint64(1234567), np.arange(5))
    assert [int(x) for x in draws] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_integers_fill_their_range_evenly():
    draws = random_bits.below(
        random_bits.fold(random_bits.key(2), np.arange(19000)), 19
    )
    counts = np.bincount(draws, minlength=19)
    assert counts.size == 19
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 42.3  # chi-square, 18, p = 0.001
