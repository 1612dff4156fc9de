import inspect
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from cases import checkpoint_cases
from prottrans_jax.distributed import multihost
from prottrans_jax.training import trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port():
    """A port such that it and the next one are free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("localhost", port + 1))
            except OSError:
                continue
            return port


def start(*args):
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def finish(process, timeout_s=120):
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes saw, and the directory they saved in."""
    directory, port = tmp_path_factory.mktemp("two"), free_port()
    script = ROOT / "tests/drills/two_processes.py"
    processes = [start(script, number, port, directory) for number in (0, 1)]
    finished = [finish(process) for process in processes]
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


def test_a_barrier_names_who_is_missing(two_processes):
    assert "process 1 of 2 is missing. Here: 0 (" in two_processes[0]["missing"]
    assert two_processes[0]["missing"].startswith("ProcessesMissing: barrier 'lonely'")


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


START = """
import sys
from prottrans_jax.distributed import multihost
multihost.initialize(sys.argv[1], 3, int(sys.argv[2]), timeout_s=float(sys.argv[3]))
"""


def test_a_start_with_a_process_missing_ends_in_time_and_says_which():
    port, other = free_port(), free_port()
    started = [
        start("-c", START, f"localhost:{port}", 0, 14),
        start("-c", START, f"localhost:{port}", 2, 12),
        start("-c", START, f"localhost:{other}", 1, 2),
    ]
    (code_0, said_0), (code_2, said_2), (code_1, said_1) = map(finish, started)
    assert code_0 == code_1 == code_2 == multihost.EXIT_STALLED
    assert "after 14 s process 1 missing; here: 0 (" in said_0
    assert "process 0 is up, another process is missing" in said_2
    assert "process 0 is not to be reached at localhost" in said_1


def test_no_limit_of_a_run_is_beyond_that_at_which_jax_aborts(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", given.update)
    multihost.initialize("auto")
    defaults = inspect.signature(trainer.train).parameters
    limits = [x.default for name, x in defaults.items() if name.endswith("timeout_s")]
    assert len(limits) == 2 and given["heartbeat_timeout_seconds"] > max(limits)


def test_a_half_given_cluster_is_refused():
    with pytest.raises(ValueError, match="without a coordinator"):
        multihost.initialize(None, 2, 0)
    with pytest.raises(ValueError, match="needs process_count"):
        multihost.initialize("localhost:1")
    with pytest.raises(ValueError, match="not below process_count=2"):
        multihost.initialize("localhost:1", 2, 2)
    with pytest.raises(ValueError, match="not HOST:PORT"):
        multihost.initialize("localhost", 2, 0)
    multihost.initialize()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_asks_to_stop_and_sets_the_exit_code(number, code):
    before = signal.getsignal(number)
    with multihost.StopSignal() as stop:
        assert not stop.should_stop(0)
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.should_stop(1) and stop.requested
    assert stop.exit_code == code
    assert signal.getsignal(number) is before


INTERRUPTED = """
import os, signal, time
from prottrans_jax.distributed import multihost
with multihost.StopSignal():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""

STALLED = """
import time
from prottrans_jax.distributed import multihost
with multihost.Watchdog(startup_s=60, step_s=0.5) as watchdog:
    watchdog.beat("step 7")
    time.sleep(60)
"""


def test_a_second_interrupt_and_a_stall_end_the_process_with_what_it_did():
    interrupted, stalled = start("-c", INTERRUPTED), start("-c", STALLED)
    code, said = finish(interrupted)
    assert code == 130 and "still here" in said and "Second interrupt" in said
    code, said = finish(stalled)
    assert code == multihost.EXIT_STALLED
    assert "No progress for 0.5 s in 'step 7'" in said
    assert 'File "<string>", line 6 in <module>' in said


STALLED_WITH_A_FILE = """
import sys, time
from prottrans_jax.distributed import multihost
with multihost.Watchdog(60, 0.5, stacks=sys.argv[1]) as watchdog:
    watchdog.beat("step 7")
    time.sleep(60)
"""


def test_stacks_of_a_stall_go_to_a_file_and_one_line_says_so(tmp_path):
    stacks = tmp_path / "stacks.txt"
    code, said = finish(start("-c", STALLED_WITH_A_FILE, stacks))
    assert code == multihost.EXIT_STALLED
    (line,) = said.split("\n")[1:-1]
    assert "No progress for 0.5 s in 'step 7'" in line and str(stacks) in line
    assert "Start the same command again on all hosts" in line
    assert 'File "<string>"' in stacks.read_text()


def watch(startup_s, step_s, body):
    fired = threading.Event()
    messages = []

    def abort(message):
        messages.append(message)
        fired.set()

    with multihost.Watchdog(startup_s, step_s, abort=abort) as watchdog:
        body(watchdog, fired)
    return messages


def test_the_watchdog_covers_start_up():
    messages = watch(0.2, 60, lambda watchdog, fired: fired.wait(10))
    assert "0.2 s in 'start-up'" in messages[0]


def test_the_watchdog_is_quiet_while_there_is_progress():
    def body(watchdog, fired):
        for step in range(8):
            watchdog.beat(f"step {step}")
            time.sleep(0.1)
        watchdog.beat("evaluation", limit_s=30)
        time.sleep(1.0)

    assert watch(60, 0.8, body) == []


def steps_of(seconds, count, monkeypatch, step_s=1800.0):
    """A watchdog that saw so many steps of so many seconds, on a clock of its own."""
    clock = [0.0]
    monkeypatch.setattr(multihost.time, "monotonic", lambda: clock[0])
    watchdog = multihost.Watchdog(3600, step_s, step_factor=50)
    for step in range(count + 1):
        watchdog.beat(f"step {step}", is_step=True)
        clock[0] += seconds
    return watchdog


def test_the_limit_of_a_step_follows_the_median_step(monkeypatch):
    assert steps_of(8, 20, monkeypatch).step_limit() == 400


def test_the_limit_of_a_step_has_a_floor_and_a_ceiling(monkeypatch):
    assert steps_of(0.01, 20, monkeypatch).step_limit() == multihost.MIN_STEP_LIMIT_S
    assert steps_of(90, 20, monkeypatch).step_limit() == 1800
    assert steps_of(90, 20, monkeypatch, step_s=30).step_limit() == 30


def test_few_steps_say_nothing_of_the_limit(monkeypatch):
    assert steps_of(8, 3, monkeypatch).step_limit() == 1800


def test_evaluations_and_saves_do_not_count_as_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(multihost.time, "monotonic", lambda: clock[0])
    watchdog = multihost.Watchdog(3600, 1800, step_factor=50)
    for step in range(20):
        watchdog.beat(f"step {step}", is_step=True)
        clock[0] += 8
        watchdog.beat("evaluation")
        clock[0] += 500
    assert watchdog.step_limit() == 400
