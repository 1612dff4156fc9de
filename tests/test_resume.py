"""A killed run ends with the bits of an unbroken one; see drills/resume.py."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "drills"))

import resume


def check(
    tmp_path,
    topology,
    steps,
    kills,
    checkpoint_period,
    eval_period,
    how="kill",
    family=None,
):
    drill = resume.Drill(
        tmp_path, topology, steps, checkpoint_period, eval_period, family
    )
    done, differences = resume.run(drill, kills, seed=1, how=how)
    assert differences == []
    assert all(kill.equal for kill in done), done
    # A run that outran a late kill is spared it.
    assert kills - 2 <= len(done) > 0
    return done


def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    (kill,) = check(
        tmp_path, "1", steps=24, kills=1, checkpoint_period=2, eval_period=7
    )
    assert 0 < kill.logged < 24


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("family", resume.FAMILIES)
def test_every_family_resumes_with_the_same_bits(tmp_path, family):
    check(tmp_path, "1", 24, 1, checkpoint_period=2, eval_period=7, family=family)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("topology", resume.PROCESSES)
def test_ten_kills_in_two_hundred_steps_leave_no_trace(tmp_path, topology):
    check(tmp_path, topology, 200, kills=10, checkpoint_period=10, eval_period=50)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("topology", resume.PROCESSES)
def test_signals_save_and_leave_no_trace(tmp_path, topology):
    check(tmp_path, topology, 60, 4, checkpoint_period=10, eval_period=50, how="signal")
