"""A few trials of each drill. Full sizes: `run.py`, docs/reliability.md."""

import pytest

from drills import run

TRIALS = {
    "kills": 2,
    "checkpoints": 30,
    "records": 30,
    "meshes": 4,
    "signals": 2,
    "stopped_commands": 4,
    "lost_hosts_2x1": 1,
}


SLOW = {"buckets": 2, "buckets_s3": 2, "buckets_2x4": 2}


@pytest.mark.parametrize(
    "name", [*TRIALS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_nothing_is_lost_in(tmp_path, name):
    done = list(run.DRILLS[name](tmp_path, (TRIALS | SLOW)[name]))
    assert done
    assert [trial for trial in done if trial.lost] == []
