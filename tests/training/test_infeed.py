"""Batches made ahead."""

import threading

import pytest

from prottrans_jax.training import infeed


def test_batches_come_in_order_and_stop():
    with infeed.Infeed(lambda i: i * i, 3, 7) as feed:
        assert list(feed) == [(3, 9), (4, 16), (5, 25), (6, 36)]


def test_never_more_than_depth_batches_wait():
    made = []
    enough = threading.Event()

    def make(index):
        made.append(index)
        if index == 2:
            enough.set()
        return index

    with infeed.Infeed(make, 0, None, depth=2) as feed:
        assert enough.wait(5)
        # Two in the queue and one in hand; the fourth would need room.
        assert made == [0, 1, 2]
        assert next(iter(feed)) == (0, 0)


def test_error_of_the_maker_reaches_the_consumer_after_the_good_batches():
    def make(index):
        if index == 2:
            raise OSError("shard 5 is damaged")
        return index

    seen = []
    with (
        infeed.Infeed(make, 0, None) as feed,
        pytest.raises(OSError, match="shard 5 is damaged"),
    ):
        for index, _ in feed:
            seen.append(index)
    assert seen == [0, 1]
