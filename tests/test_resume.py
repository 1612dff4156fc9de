"""A killed run ends with the bits of an unbroken one; see drills/resume.py."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "drills"))

import resume


def check(tmp_path, topology, steps, kills, checkpoint_period, eval_period):
    drill = resume.Drill(tmp_path, topology, steps, checkpoint_period, eval_period)
    done, differences = resume.run(drill, kills, seed=1)
    assert differences == []
    assert len(done) == kills
    assert all(kill.equal for kill in done), done
    return done


def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    (kill,) = check(
        tmp_path, "1", steps=24, kills=1, checkpoint_period=2, eval_period=7
    )
    assert 0 < kill.logged < 24


@pytest.mark.slow
@pytest.mark.parametrize("topology", resume.PROCESSES)
def test_ten_kills_in_two_hundred_steps_leave_no_trace(tmp_path, topology):
    check(tmp_path, topology, 200, kills=10, checkpoint_period=10, eval_period=50)
