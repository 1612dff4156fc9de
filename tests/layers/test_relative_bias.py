"""Buckets and distances of T5's relative bias."""

import numpy as np
import pytest

from prottrans_jax.layers import relative_bias

# transformers 4.57.6, T5Attention._relative_position_bucket, 32 buckets, maximum 128,
# at these distances (key minus query).
DISTANCES = [-200, -128, -127, -91, -90, -64, -46, -45, -16, -9, -8, -7, -1, 0]
BACKWARD = {
    True: [15, 15, 15, 15, 14, 14, 13, 12, 10, 8, 8, 7, 1, 0],
    False: [31, 31, 31, 29, 29, 26, 24, 23, 16, 9, 8, 7, 1, 0],
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_hugging_face(bidirectional):
    kwargs = dict(bidirectional=bidirectional, num_buckets=32, max_distance=128)
    buckets = relative_bias.bucket(np.array(DISTANCES), **kwargs)
    assert buckets.tolist() == BACKWARD[bidirectional]
    forward = relative_bias.bucket(-np.array(DISTANCES), **kwargs)
    if bidirectional:
        # Keys after the query have the upper half; distance 0 is in the lower.
        expected = [b + 16 for b in BACKWARD[True][:-1]] + [0]
    else:
        expected = [0] * len(DISTANCES)
    assert forward.tolist() == expected


@pytest.mark.slow  # for the import of transformers
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_distance_has_the_bucket_of_hugging_face(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    distances = np.arange(-40_000, 40_001)
    theirs = t5.T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional, 32, 128
    )
    ours = relative_bias.bucket(
        distances, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert np.array_equal(ours, theirs.numpy())
