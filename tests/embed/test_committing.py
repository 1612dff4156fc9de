"""Times of commits: early at first, then at least every `commit_seconds`."""

import numpy as np
import pytest

from prottrans_jax.embed import computing, shards


@pytest.mark.parametrize(
    ("elapsed_s", "wait_s"),
    [(0, 2), (10, 2), (60, 6), (300, 30), (3000, 30), (36_000, 360)],
)
def test_waits_grow_with_the_time_so_far(elapsed_s, wait_s):
    assert computing.wait_s(elapsed_s, commit_seconds=30.0) == pytest.approx(wait_s)


def number_of_shards(seconds):
    """Number of shards of a job so slow that shards never fill."""
    now, number = 0.0, 0
    while now < seconds:
        now += computing.wait_s(now, commit_seconds=30.0)
        number += 1
    return number


def test_a_week_of_slow_results_makes_hundreds_of_shards_not_thousands():
    assert number_of_shards(60) > 10
    assert number_of_shards(7 * 86_400) < 1000


def item(name):
    return shards.Item(name.ljust(32).encode(), {"protein": np.ones(3, np.float32)})


def test_results_are_committed_without_further_ones(tmp_path):
    parts = shards.Parts(tmp_path / "out.h5", {"model": "x"})
    with computing.Committer(parts, commit_seconds=0.0) as committer:
        committer.add(item("P1"))
        while parts.is_empty:
            pass
    parts.close()


def test_flush_commits_waiting_items(tmp_path):
    parts = shards.Parts(tmp_path / "out.h5", {"model": "x"})
    with computing.Committer(parts, commit_seconds=1e6) as committer:
        committer.add(item("P1"))
        committer.flush()
        assert not parts.is_empty
    parts.close()


def test_commit_error_is_raised_by_add(tmp_path, monkeypatch):
    parts = shards.Parts(tmp_path / "out.h5", {"model": "x"})

    def full(items):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "commit", full)
    with (
        pytest.raises(OSError, match="No space"),
        computing.Committer(parts, commit_seconds=0.0) as committer,
    ):
        while True:
            committer.add(item("P1"))
    parts.close()
