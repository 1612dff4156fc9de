import json
import pathlib
import signal

import pytest

from cases import checkpoint_cases, process_cases, stores

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(
    scope="module",
    params=["local", "gs", pytest.param("s3", marks=pytest.mark.slow)],
)
def two_processes(request, tmp_path_factory):
    """What each of two processes saw, and the directory they saved in."""
    directory = stores.fresh(request.param, tmp_path_factory.mktemp("two"))
    port = process_cases.free_port()
    script = ROOT / "tests/drills/two_processes.py"
    processes = [
        process_cases.start_python(script, number, port, directory) for number in (0, 1)
    ]
    finished = [process_cases.finish(process) for process in processes]
    seen = []
    for returncode, output in finished:
        assert returncode == 0, "\n".join(output[-3000:] for _, output in finished)
        line = next(x for x in output.splitlines() if x.startswith("SEEN "))
        seen.append(json.loads(line.removeprefix("SEEN ")))
    return *seen, directory


def test_two_processes_make_one_run(two_processes):
    for seen in two_processes[:2]:
        assert (seen["devices"], seen["local_devices"]) == (4, 2)


def test_process_zero_answers_for_all_and_its_failure_reaches_all(two_processes):
    zero, one, _ = two_processes
    assert zero["told"] == one["told"] == {"answer": 42}
    assert (zero["asked"], one["asked"]) == ([0], [])
    assert zero["failure"].startswith("JSONDecodeError")
    assert "failed on process 0: Expecting" in one["failure"]


def test_every_process_gathers_the_values_of_all(two_processes):
    for seen in two_processes[:2]:
        assert seen["gathered"] == [{"process": 0}, {"process": 1}]


def test_a_wait_for_other_processes_names_who_is_missing(two_processes):
    assert "process 1 of 2 is missing. Here: 0 (" in two_processes[0]["missing"]
    assert two_processes[0]["missing"].startswith("ProcessesMissing: lonely: after 1 s")


def test_two_processes_save_and_restore_around_a_damaged_step(two_processes):
    for seen in two_processes[:2]:
        assert seen["restored"] == [2, {"next_row": 2}]
        assert seen["equal"]


def test_one_process_restores_what_two_saved(two_processes):
    restored = checkpoint_cases.restore(two_processes[2])
    assert restored.step == 3
    checkpoint_cases.assert_bit_equal(restored.state, checkpoint_cases.make_state(3))


def test_a_signal_to_one_process_stops_all_at_one_step(two_processes):
    zero, one, _ = two_processes
    assert zero["stopped_at"] == one["stopped_at"] >= 20
    assert zero["exit_code"] == one["exit_code"] == 128 + signal.SIGTERM
