"""Steps of a log as a few numbers."""

import json

from prottrans_jax.training import logged_steps


def make(group, steps):
    logged = logged_steps.LoggedSteps()
    for step in steps:
        logged.add(group, step)
    return logged


def test_regular_steps_are_three_numbers():
    assert make("train", range(7, 7000, 7)).state() == {"train": [[7, 6993, 7]]}


def test_irregular_steps_come_back_through_json():
    steps = [3, 6, 9, 10, 12, 15, 20, 21]
    state = json.loads(json.dumps(make("train", steps).state()))
    nothing = logged_steps.LoggedSteps()
    assert logged_steps.LoggedSteps(state).missing_from(nothing) == {"train": steps}


def test_only_steps_of_the_same_group_count_as_there():
    lost = make("train", [3, 6, 9]).missing_from(make("train", [6]))
    assert lost == {"train": [3, 9]}
    assert make("validation", [4]).missing_from(make("train", [4])) == {
        "validation": [4]
    }


def test_many_steps_are_described_by_their_ends_and_number():
    text = logged_steps.describe({"train": range(3, 33, 3), "validation": [4]})
    assert text == "train 3, 6, 9 ... 30 (10 steps); validation 4"
