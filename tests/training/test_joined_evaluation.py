"""`python -m prottrans_jax.evaluate` in several processes."""

import json
import time

import pytest

from cases import process_cases
from drills import processes, resume

STEPS = 4


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    """A finished run of one process, with checkpoints of steps 0, 1 ... `STEPS`."""
    drill = resume.Drill(
        tmp_path_factory.mktemp("run"),
        steps=STEPS,
        checkpoint_period=1,
        eval_period=STEPS,
    )
    drill.prepare()
    drill.finish(drill.work / "run", keep=100)
    return drill


@pytest.fixture
def start(drill):
    """Starts an evaluation in `count` processes of one device.

    `flags` are of all processes, `of_each` of each. None is left behind.
    """
    started = []

    def start(count, *flags, of_each=((), ())):
        common = [
            f"--gin_file={drill.work / 'leaf.gin'}",
            f"--model_dir={drill.work / 'run'}",
            f"--data_dir={drill.work / 'records'}",
            f"--gin.TRAIN_STEPS={STEPS}",
            *flags,
        ]
        if count > 1:
            address = f"localhost:{process_cases.free_port()}"
            common += [f"--coordinator_address={address}", f"--num_processes={count}"]
        number = len(list(drill.work.glob("evaluation*.log")))
        processes_of_run = [
            processes.start_module(
                "prottrans_jax.evaluate",
                [*common, *of_each[index], *[f"--process_id={index}"] * (count > 1)],
                drill.work / f"evaluation{number + index}.log",
                env={"XLA_FLAGS": "--xla_backend_optimization_level=0"},
            )
            for index in range(count)
        ]
        started.extend(processes_of_run)
        return processes_of_run

    yield start
    for process in started:
        process.kill()


def results(drill):
    """Lines of evaluation.jsonl."""
    path = drill.work / "run" / "evaluation.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def test_two_processes_evaluate_as_one_does(drill, start):
    (alone,) = start(1)
    assert alone.wait(120) == 0, alone.output()
    joined = start(2)
    assert [process.wait(120) for process in joined] == [0, 0], joined[1].output()
    first, second = results(drill)
    assert first["step"] == second["step"] == STEPS
    (name,) = set(first) - {"step"}
    # Sums of two halves are added in another order.
    assert second[name] == pytest.approx(first[name], rel=1e-5)
    # One process reports.
    assert f"step {STEPS}  {name}" in joined[0].output()
    assert f"step {STEPS}  {name}" not in joined[1].output()


def test_a_damaged_step_is_left_out_by_all_processes(drill, start):
    damaged = drill.work / "run" / "checkpoints" / "3" / "_METADATA"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1])
    before = len(results(drill))
    joined = start(2, "--step=all", "--max_batches=1")
    assert [process.wait(120) for process in joined] == [1, 1], joined[1].output()
    damaged.write_bytes(sound)
    for process in joined:
        assert str(damaged) in process.output().splitlines()[-1]
    evaluated = [result["step"] for result in results(drill)[before:]]
    assert evaluated == [step for step in range(STEPS + 1) if step != 3]


def test_a_process_that_is_lost_ends_the_evaluation_of_the_other(drill, start):
    before = len(results(drill))
    joined = start(2, "--step=all")
    while len(results(drill)) == before and joined[1].poll() is None:
        time.sleep(0.001)
    joined[1].kill()
    assert joined[0].wait(120) == 1, joined[0].output()
    assert "process 1 (" in joined[0].output().splitlines()[-1]


def test_processes_with_different_flags_are_refused(drill, start):
    joined = start(2, of_each=(["--max_batches=1"], ["--max_batches=2"]))
    assert [process.wait(120) for process in joined] == [2, 2], joined[1].output()
    for process in joined:
        assert process.output().splitlines()[-1].endswith("setting max_batches: 1 -> 2")
