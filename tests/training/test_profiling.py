"""Profiles that are asked for while a run goes on, and further writers."""

import os
import pathlib
import signal
import sys
import types

import pytest

from cases import runs, trainer_cases
from prottrans_jax.config import building
from prottrans_jax.training import trainer, wandb_writer


class Signalling(trainer_cases.Batches):
    """Sends SIGUSR1 to this process while batch 1 is made."""

    def features(self, index, rng):
        if index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().features(index, rng)


def test_sigusr1_profiles_the_next_steps_and_the_run_goes_on(tmp_path, capfd):
    before = signal.getsignal(signal.SIGUSR1)
    arguments = trainer_cases.arguments(
        tmp_path, train_data=Signalling(), eval_data={}, total_steps=8
    )
    summary = runs.train(**arguments, logs_profile_steps_after_signal=2)
    assert summary.step == 8 and summary.exit_code == 0
    assert "profiling 2 steps" in capfd.readouterr().err
    (trace,) = pathlib.Path(arguments["model_dir"], "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    for annotation in (b"train", b"data"):
        assert annotation in content
    assert signal.getsignal(signal.SIGUSR1) is before


class Scalars:
    """A writer with nothing but `write_scalars`."""

    def __init__(self, model_dir):
        self.model_dir, self.written = model_dir, {}

    def write_scalars(self, step, scalars):
        self.written[step] = dict(scalars)


def test_a_writer_named_in_the_settings_gets_every_line(tmp_path):
    made = []

    def factory(model_dir):
        made.append(Scalars(model_dir))
        return made[-1]

    arguments = trainer_cases.arguments(tmp_path, eval_data={})
    runs.train(**arguments, logs_writer=factory)
    (writer,) = made
    assert writer.model_dir == arguments["model_dir"]
    assert sorted(writer.written) == [3, 6]
    assert writer.written[6]["train/loss"] > 0


def test_a_writer_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb") as error:
        wandb_writer.open_writer("run")
    assert "\n" not in str(error.value)


def test_a_gin_file_names_the_writer_and_its_settings(monkeypatch):
    made = []
    wandb = types.SimpleNamespace(init=lambda **options: made.append(options))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    bindings = (
        "MODEL_DIR = 'unused'",
        "run_settings.Logs.writer = @wandb_writer.open_writer",
        "wandb_writer.open_writer.project = 'proteins'",
    )
    building.parse(["sample.gin"], bindings)
    logs = building.build(building.bound(trainer.train)["logs"])
    logs.writer("run")
    assert made[0]["project"] == "proteins"


def test_wandb_goes_on_with_the_same_run_after_a_restart(monkeypatch, tmp_path):
    calls, logged = [], []

    def init(**arguments):
        calls.append(arguments)
        return types.SimpleNamespace(
            log=lambda scalars, step: logged.append((step, scalars)),
            finish=lambda: logged.append("end"),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.chdir(tmp_path)
    for place in ("run", str(tmp_path / "run")):
        writer = wandb_writer.open_writer(place, project="proteins")
    writer.write_scalars(3, {"train/loss": 2.5})
    writer.close()
    assert calls[0] == calls[1]
    assert calls[0]["resume"] == "allow" and calls[0]["name"] == "run"
    assert logged == [(3, {"train/loss": 2.5}), "end"]
