"""The record of a run: outputs of steps to log lines, and what to do about NaN."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib

from absl import logging
import jax
from jaxtyping import PyTree
import numpy as np

from prottrans_jax import hardware, metrics


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite and the policy is to stop."""


@dataclasses.dataclass(frozen=True)
class NonFinitePolicy:
    """What to do about a step whose loss or gradient is not finite.

    Attributes:
      action: "stop", or "skip": go on with the state as it was before the step.
      max_in_a_row: "skip" gives up after so many such steps in a row.
    """

    action: str = "stop"
    max_in_a_row: int = 10

    def __post_init__(self):
        if self.action not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={self.action!r}: choose 'stop' or 'skip'.")


# A run is a function of its settings: unchanged, it meets the same step again.
_WAY_ON = {
    "stop": (
        "The same command meets the same step again. To leave such updates out, add "
        "--gin_bindings=\"trainer.train.on_nonfinite = 'skip'\"; or lower the learning "
        "rate or clip gradients, with "
        "--gin_bindings='trainer.train.accept_config_changes = True'."
    ),
    "skip": (
        "The same command meets the same steps again. Lower the learning rate or clip "
        "gradients, with --gin_bindings='trainer.train.accept_config_changes = True', "
        "or raise trainer.train.max_skipped_steps."
    ),
}

# Causes of the stopwatch during which no step runs.
_NOT_STEPS = ("evaluate", "checkpoint", "compile")


class Rates:
    """Rates since the last log line, and the split of the time between them."""

    def __init__(
        self, watch: metrics.Stopwatch, flops_per_step: float, mesh: jax.sharding.Mesh
    ):
        self._watch = watch
        self._flops = flops_per_step
        self._num_devices = mesh.size
        self._peak = hardware.peak_flops(mesh.devices.flat[0])
        self.start(0)

    def start(self, step: int) -> None:
        """Begins a new window after `step`."""
        self._step = step
        self._wall = self._watch.wall()
        self._split = self._watch.split()

    def scalars(self, step: int, residues: float) -> dict[str, float]:
        """Closes the window at `step`, in which so many residues were read.

        Rates and MFU count the time in which steps ran: all of it but evaluations,
        saves and compilation. Waiting for data is in it: it overlaps the step before.
        """
        wall, split = self._watch.wall(), self._watch.split()
        seconds = max(wall - self._wall, 1e-9)
        steps = max(step - self._step, 1)
        parts = {k: v - self._split.get(k, 0.0) for k, v in split.items()}
        training = seconds - sum(parts.get(cause, 0.0) for cause in _NOT_STEPS)
        training = max(training, 1e-9)
        scalars = {
            "timing/step_seconds": training / steps,
            "timing/residues_per_second": residues / training,
        }
        scalars |= {f"timing/seconds/{cause}": v for cause, v in split.items()}
        scalars |= {f"timing/share/{cause}": v / seconds for cause, v in parts.items()}
        if self._peak is not None:
            peak = self._peak * self._num_devices
            scalars["timing/mfu"] = self._flops * steps / (training * peak)
        self.start(step)
        return scalars


class Journal:
    """Turns the outputs of steps into log lines, one step behind the device.

    Args:
      directory: of the run; `metrics.jsonl` and `nonfinite.jsonl` go there.
      writers: further places for scalars.
      resume_at: step from which the run goes on.
      window: state of the sums since the last log line, from a checkpoint.
      total_steps: where the run ends.
      log_period: steps that one line averages over.
      nonfinite: policy.
      record_ids: step to the ids of the records in its batch, for dumps.
      rates: clock of the run.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        writers: Sequence[metrics.Writer],
        resume_at: int,
        window: Mapping[str, Sequence[float]],
        total_steps: int,
        log_period: int,
        nonfinite: NonFinitePolicy,
        record_ids: Callable[[int], Sequence[str]],
        rates: Rates,
    ):
        main_process = jax.process_index() == 0
        self._directory = directory
        self._writers: list[metrics.Writer] = []
        if main_process:
            path = directory / "metrics.jsonl"
            self._writers = [metrics.JsonlWriter(path, resume_at), *writers]
        self._window = metrics.SumAccumulator(window)
        self._total_steps = total_steps
        self._log_period = log_period
        self._nonfinite = nonfinite
        self._record_ids = record_ids
        self._rates = rates
        self._line = metrics.ProgressLine(
            total_steps, resume_at, interactive=None if main_process else False
        )
        self._resume_at = resume_at
        self._pending: tuple[int, PyTree] | None = None
        self._skipped_in_a_row = 0
        # Of this process: the window may have begun before a restart.
        self._residues = 0.0

    def start(self) -> None:
        """Starts the clock of the first line."""
        self._rates.start(self._resume_at)

    def window_state(self) -> dict[str, list[float]]:
        """Sums since the last log line, for a checkpoint."""
        return self._window.state()

    def push(self, step: int, outputs: PyTree) -> None:
        """Takes a step's outputs as futures and reads those of the step before."""
        previous, self._pending = self._pending, (step, outputs)
        self._read(previous)
        self._line.advance(step)

    def settle(self) -> None:
        """Reads the outputs of the last step, waiting for it."""
        previous, self._pending = self._pending, None
        self._read(previous)

    def _read(self, pending: tuple[int, PyTree] | None) -> None:
        if pending is None:
            return
        step, outputs = pending[0], jax.device_get(pending[1])
        self._residues += float(outputs["sums"].get("residues", (0,))[0])
        if outputs["finite"]:
            self._skipped_in_a_row = 0
            self._window.add(outputs["sums"])
        else:
            self._skipped_in_a_row += 1
            self._window.add({"skipped_steps": (1.0, 0.0)})
            self._on_nonfinite(step, outputs)
        if step % self._log_period == 0 or step == self._total_steps:
            self._log(step, outputs)

    def _log(self, step: int, outputs: PyTree) -> None:
        means = metrics.with_perplexity(self._window.means())
        scalars = {f"train/{name}": value for name, value in means.items()}
        for name in ("learning_rate", "grad_norm", "param_norm", "update_norm"):
            scalars[f"train/{name}"] = float(outputs[name])
        scalars["train/skipped_steps"] = self._window.total("skipped_steps")
        timing = self._rates.scalars(step, self._residues)
        self._residues = 0.0
        for writer in self._writers:
            writer.write_scalars(step, scalars | timing)
        self._line.report(step, _progress_text(scalars | timing))
        self._window.clear()

    def _on_nonfinite(self, step: int, outputs: PyTree) -> None:
        path = self._directory / "nonfinite.jsonl"
        if jax.process_index() == 0:
            record = {
                "step": step,
                "grad_norm": str(outputs["grad_norm"]),
                "sums": {k: [str(x) for x in v] for k, v in outputs["sums"].items()},
                "record_ids": list(self._record_ids(step)),
            }
            with open(path, "a", encoding="utf-8") as dump:
                dump.write(json.dumps(record) + "\n")
        policy = self._nonfinite
        if policy.action == "stop" or self._skipped_in_a_row > policy.max_in_a_row:
            raise NonFiniteError(
                f"Step {step}: loss or gradient is not finite (gradient norm "
                f"{outputs['grad_norm']}), {self._skipped_in_a_row} step(s) in a row. "
                f"The step and the ids of its records are in {path}. "
                + _WAY_ON[policy.action]
            )
        logging.warning("Step %d is not finite and was skipped; see %s.", step, path)

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Logs the results of an evaluation, by name of the data set."""
        for name, scalars in results.items():
            for writer in self._writers:
                writer.write_scalars(
                    step, {f"{name}/{key}": value for key, value in scalars.items()}
                )
            self._line.note(f"step {step}  {name}: {_evaluation_text(scalars)}")

    def close(self) -> None:
        """Leaves files and terminal in order."""
        for writer in self._writers:
            writer.flush()
        self._line.close()


def _progress_text(scalars: Mapping[str, float]) -> str:
    shown = (
        ("loss {:.3f}", "train/loss"),
        ("corrupted {:.3f}", "train/corrupted_loss"),
        ("lr {:.2g}", "train/learning_rate"),
        ("grad {:.2g}", "train/grad_norm"),
        ("{:,.0f} residues/s", "timing/residues_per_second"),
        ("real tokens {:.1%}", "train/real_token_fraction"),
        ("{:.3f} s/step", "timing/step_seconds"),
        ("data wait {:.0%}", "timing/share/data"),
        ("MFU {:.1%}", "timing/mfu"),
    )
    return "  ".join(f.format(scalars[k]) for f, k in shown if k in scalars)


def _evaluation_text(scalars: Mapping[str, float]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" for key, value in scalars.items() if np.isfinite(value)
    )
