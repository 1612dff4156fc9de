"""A supervised command is started again until it is done or makes no progress."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cases import process_cases
from prottrans_jax.distributed import supervisor

# Writes a "checkpoint" and ends as the next line of its plan says: "STEP STATUS", where
# STEP "-" writes none, and a negative status is a signal to itself.
PLANNED = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
plan = (folder / "plan").read_text().splitlines()
(folder / "plan").write_text("\\n".join(plan[1:]))
step, status = plan[0].split()
if step != "-":
    (folder / f"step.{step}").touch()
if int(status) < 0:
    os.kill(os.getpid(), -int(status))
sys.exit(int(status))
"""


class Planned:
    """A supervisor of a script that ends as planned, without waits between starts."""

    def __init__(self, folder, *plan, **limits):
        (folder / "plan").write_text("\n".join(plan))
        self.folder, self.events = folder, []
        limits = {"first_wait_s": 0.0, **limits}
        self.status = supervisor.Supervisor(
            [sys.executable, "-c", PLANNED, str(folder)],
            self.newest_step,
            self.events.append,
            supervisor.Limits(**limits),
        ).run()

    def newest_step(self):
        steps = [int(path.suffix[1:]) for path in self.folder.glob("step.*")]
        return max(steps, default=None)

    @property
    def names(self):
        return [event["event"] for event in self.events]


def test_a_command_is_started_again_after_every_loss_until_it_is_done(tmp_path):
    run = Planned(tmp_path, "1 -9", "2 1", "3 75", "4 143", "5 -11", "6 0")
    assert run.status == 0
    assert run.names == ["start", "exit", "restart"] * 5 + ["start", "exit", "done"]
    exits = [event for event in run.events if event["event"] == "exit"]
    assert [event["step"] for event in exits] == [1, 2, 3, 4, 5, 6]
    assert [event["cause"] for event in exits] == [
        "killed by SIGKILL",
        "failed, or another host was lost",
        "stalled, or the run did not start in time",
        "pre-empted",
        "killed by SIGSEGV",
        "done",
    ]
    assert (exits[0]["signal"], exits[2]["status"]) == ("SIGKILL", 75)
    assert all(event["seconds"] > 0 for event in exits)


@pytest.mark.parametrize("status", [2, 3, 130])
def test_an_end_that_would_come_again_is_passed_on(tmp_path, status):
    run = Planned(tmp_path, f"1 {status}", "2 0")
    assert run.status == status
    assert run.names == ["start", "exit", "give_up"]


def test_two_restarts_without_a_newer_checkpoint_are_the_last(tmp_path):
    run = Planned(tmp_path, "7 -9", "- -9", "8 -9", "- 1", "- 1", "9 0")
    assert run.status == 1
    assert run.names == ["start", "exit", "restart"] * 4 + ["start", "exit", "give_up"]
    assert "2 restarts in a row" in run.events[-1]["cause"]
    assert run.events[-1]["step"] == 8


def test_a_command_that_never_saves_is_started_three_times(tmp_path):
    run = Planned(tmp_path, "- -9", "- -9", "- -9", "1 0")
    assert run.status == 128 + signal.SIGKILL
    assert run.names.count("start") == 3


def test_waits_double_without_progress_up_to_a_limit(tmp_path):
    plan = ["1 -9", "- -9", "- -9", "- -9", "2 -9", "3 0"]
    run = Planned(
        tmp_path,
        *plan,
        restarts_without_progress=9,
        first_wait_s=0.01,
        longest_wait_s=0.03,
    )
    waits = [e["wait_seconds"] for e in run.events if e["event"] == "restart"]
    assert waits == [0.01, 0.02, 0.03, 0.03, 0.01]


def test_a_command_that_does_not_exist_is_not_started_again(tmp_path):
    events = []
    command = [str(tmp_path / "missing")]
    status = supervisor.Supervisor(command, lambda: None, events.append).run()
    assert status == 127
    assert "does not exist" in events[-1]["cause"]


@pytest.mark.parametrize(
    ("words", "model_dir"),
    [
        (["--model_dir=/a"], "/a"),
        (["--model_dir", "/a"], "/a"),
        (["--gin.MODEL_DIR='/a'"], "/a"),
        (["--gin.MODEL_DIR=/a"], "/a"),
        (["--gin_bindings=MODEL_DIR = '/a'"], "/a"),
        (["--gin_bindings", 'MODEL_DIR="/a"', "--gin_bindings=X = 1"], "/a"),
        (["--gin.MODEL_DIR='/b'", "--model_dir=/a", "--gin.MODEL_DIR='/c'"], "/a"),
        (["--gin.MODEL_DIRS='/b'", "--data_dir=/a"], None),
    ],
)
def test_the_model_dir_is_read_from_the_command(words, model_dir):
    assert supervisor.model_dir_of(["python", "x.py", *words]) == model_dir


def supervise(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "prottrans_jax.cli", "supervise", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", **environment},
    )


# Ends 3 s after SIGTERM, longer than a command without a checkpoint may take.
SLOW_TO_STOP = """
import signal, sys, time
def stop(number, frame):
    print("stopping", flush=True)
    time.sleep(3)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_stop_signal_reaches_the_command_which_may_save_and_is_not_restarted(
    tmp_path,
):
    process = supervise(
        f"--model-dir={tmp_path}", "--", sys.executable, "-c", SLOW_TO_STOP
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, messages = process.communicate(timeout=30)
    assert (process.returncode, output) == (143, "stopping\nsaved\n")
    events = [json.loads(line) for line in messages.splitlines()]
    assert [event["event"] for event in events] == ["start", "exit", "done"]
    assert events[-1]["cause"] == "stopped by SIGTERM"
    (path,) = tmp_path.glob("supervisor.*.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == events


def test_processes_that_a_killed_command_started_are_ended(tmp_path):
    script = (
        "import os, pathlib, subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "pathlib.Path(sys.argv[1]).write_text(str(p.pid)); os.kill(os.getpid(), 9)"
    )
    file = tmp_path / "pid"
    supervisor.Supervisor(
        [sys.executable, "-c", script, str(file)],
        lambda: None,
        lambda event: None,
        supervisor.Limits(restarts_without_progress=0),
    ).run()
    status = pathlib.Path("/proc") / file.read_text() / "stat"
    deadline = time.monotonic() + 10
    # It may stay a zombie until its new parent waits for it.
    while status.exists() and status.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "no command is given"), (("--", "true"), "names no model_dir")],
)
def test_a_wrong_use_is_one_line(arguments, said):
    process = supervise(*arguments)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said in messages and messages.count("\n") == 1


# A tiny training that kills itself with -9 the first time it has logged step 3.
KILLED = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from cases import process_cases, runs, trainer_cases
folder = pathlib.Path(sys.argv[1])
process_cases.kill_once(
    folder / "run" / "metrics.jsonl", 3, folder / "killed"
)
arguments = trainer_cases.arguments(folder, total_steps=6, evaluation_period=6)
sys.exit(runs.train(**arguments | {"logs_period": 1}).exit_code)
"""


def test_a_training_killed_by_signal_9_is_resumed_to_its_last_step(tmp_path):
    tests = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", KILLED, tmp_path, tests]
    process = supervise(f"--model-dir={tmp_path / 'run'}", "--wait=0", "--", *command)
    _, messages = process.communicate(timeout=240)
    assert process.returncode == 0, messages[-3000:]
    lines = [line for line in messages.splitlines() if line.startswith('{"host"')]
    events = [json.loads(line) for line in lines]
    names = [event["event"] for event in events]
    assert names == ["start", "exit", "restart", "start", "exit", "done"]
    assert events[1]["signal"] == "SIGKILL" and events[-1]["step"] == 6
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


# One host of a run of two. Host 1 kills itself with -9 the first time it has logged
# step 3, as does host 0 at step 7.
HOST = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[2])
folder, host, port = pathlib.Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
from cases import process_cases, runs, trainer_cases
from prottrans_jax import partitioning
from prottrans_jax.distributed import start
start.initialize(f"localhost:{port}", 2, host, timeout_s=60)
process_cases.kill_once(
    folder / "run" / "metrics.jsonl", {0: 7, 1: 3}[host], folder / f"killed.{host}"
)
class Slow(trainer_cases.Batches):
    def features(self, index, rng):
        time.sleep(0.1)
        return super().features(index, rng)
arguments = trainer_cases.arguments(
    folder, total_steps=12, evaluation_period=6, train_data=Slow(), logs_period=1,
    partitioner=partitioning.Partitioner(num_devices=2),
)
sys.exit(runs.train(**arguments).exit_code)
"""


@pytest.mark.slow
def test_hosts_that_are_lost_one_after_the_other_end_the_run_together(tmp_path):
    tests = pathlib.Path(__file__).resolve().parents[1]
    port = process_cases.free_port()
    hosts = [
        supervise(
            *(f"--model-dir={tmp_path / 'run'}", "--", sys.executable, "-c", HOST),
            *(tmp_path, tests, host, port),
            XLA_FLAGS="--xla_force_host_platform_device_count=1",
        )
        for host in (0, 1)
    ]
    finished = [host.communicate(timeout=500) for host in hosts]
    messages = "\n".join(text for _, text in finished)
    assert [host.returncode for host in hosts] == [0, 0], messages[-5000:]
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 13))
    # Each host was killed once and lost the other once. One that is back before the
    # other has noticed its loss starts once more.
    for text in finished:
        lines = [line for line in text[1].splitlines() if line.startswith('{"host"')]
        events = [json.loads(line)["event"] for line in lines]
        assert 2 <= events.count("restart") <= 4
