import threading
import time

from cases import process_cases
from prottrans_jax.distributed import roll_call, watchdog

STALLED = """
import time
from prottrans_jax.distributed import watchdog
with watchdog.Watchdog(startup_s=60, step_s=0.5) as dog:
    dog.beat("step 7")
    time.sleep(60)
"""


def test_a_stall_ends_the_process_with_its_stacks():
    code, output = process_cases.finish(process_cases.start_python("-c", STALLED))
    assert code == roll_call.EXIT_STALLED
    assert "No progress for 0.5 s in 'step 7'" in output
    assert 'File "<string>", line 6 in <module>' in output


STALLED_WITH_A_FILE = """
import sys, time
from prottrans_jax.distributed import watchdog
with watchdog.Watchdog(60, 0.5, stacks=sys.argv[1]) as dog:
    dog.beat("step 7")
    time.sleep(60)
"""


def test_stacks_of_a_stall_go_to_a_file_and_one_line_says_so(tmp_path):
    stacks = tmp_path / "stacks.txt"
    code, said = process_cases.finish(
        process_cases.start_python("-c", STALLED_WITH_A_FILE, stacks)
    )
    assert code == roll_call.EXIT_STALLED
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

    with watchdog.Watchdog(startup_s, step_s, abort=abort) as dog:
        body(dog, fired)
    return messages


def test_the_watchdog_covers_start_up():
    messages = watch(0.2, 60, lambda dog, fired: fired.wait(10))
    assert "0.2 s in 'start-up'" in messages[0]


def test_the_watchdog_is_quiet_while_there_is_progress():
    def body(dog, fired):
        for step in range(8):
            dog.beat(f"step {step}")
            time.sleep(0.1)
        dog.beat("evaluation", limit_s=30)
        time.sleep(1.0)

    assert watch(60, 0.8, body) == []


def steps_of(seconds, count, monkeypatch, step_s=1800.0):
    """A watchdog that saw so many steps of so many seconds, on a clock of its own."""
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    dog = watchdog.Watchdog(3600, step_s, step_factor=50)
    for step in range(count + 1):
        dog.beat(f"step {step}", is_step=True)
        clock[0] += seconds
    return dog


def test_the_limit_of_a_step_follows_the_median_step(monkeypatch):
    assert steps_of(8, 20, monkeypatch).step_limit() == 400


def test_the_limit_of_a_step_has_a_floor_and_a_ceiling(monkeypatch):
    assert steps_of(0.01, 20, monkeypatch).step_limit() == watchdog.MIN_STEP_LIMIT_S
    assert steps_of(90, 20, monkeypatch).step_limit() == 1800
    assert steps_of(90, 20, monkeypatch, step_s=30).step_limit() == 30


def test_few_steps_say_nothing_of_the_limit(monkeypatch):
    assert steps_of(8, 3, monkeypatch).step_limit() == 1800


def test_evaluations_and_saves_do_not_count_as_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    dog = watchdog.Watchdog(3600, 1800, step_factor=50)
    for step in range(20):
        dog.beat(f"step {step}", is_step=True)
        clock[0] += 8
        dog.beat("evaluation")
        clock[0] += 500
    assert dog.step_limit() == 400
