"""Logs of a run: outputs of steps to log lines; steps that are not finite."""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any

from absl import logging
import jax
from jaxtyping import PyTree
import numpy as np

from prottrans_jax.costs import hardware
from prottrans_jax.files import appending, leases, locks, paths
from prottrans_jax.training import (
    logged_steps,
    loss_spikes,
    metrics,
    rewinding,
    run_settings,
)


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite, and the policy is to stop."""


# A run is deterministic: with the same settings it fails at the same step again.
_WAY_OUT = {
    "stop": (
        "The same command will fail at the same step again. To skip such updates, add "
        "--gin_bindings=\"run_settings.NonFinite.policy = 'skip'\"; or lower the "
        "learning rate or clip gradients, with "
        "--gin_bindings='run_settings.Start.accept_config_changes = True'."
    ),
    "skip": (
        "The same command will fail at the same steps again. Lower the learning rate "
        "or clip gradients, with "
        "--gin_bindings='run_settings.Start.accept_config_changes = True', or raise "
        "run_settings.NonFinite.max_skipped_steps."
    ),
}

# Causes of the `metrics.Stopwatch` during which no step runs.
_NOT_STEPS = ("evaluate", "checkpoint", "compile")


class Rates:
    """Throughput since the last log line, and shares of the wall time by cause."""

    def __init__(
        self,
        watch: metrics.Stopwatch,
        flops_per_step: Callable[[], float],
        mesh: jax.sharding.Mesh,
    ):
        self._watch = watch
        self._flops_per_step = flops_per_step
        self._num_devices = mesh.size
        self._peak = hardware.peak_flops(mesh.devices.flat[0])
        self.start(0)

    def start(self, step: int) -> None:
        """Begins a new window after `step`."""
        self._step = step
        self._wall = self._watch.wall()
        self._split = self._watch.split()

    def scalars(self, step: int, residues: float) -> dict[str, float]:
        """Ends the window at `step` and starts the next one.

        Rates and MFU count the time without evaluations, saves and compilation. The
        wait for data is included: it overlaps the previous step.

        Args:
          step: last step of the window.
          residues: residues read in the window.
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
            scalars["timing/mfu"] = self._flops_per_step() * steps / (training * peak)
        self.start(step)
        return scalars


class Journal:
    """Turns the outputs of steps into log lines, one step behind the device.

    Args:
      directory: of the run, for `metrics.jsonl` and `nonfinite.jsonl`.
      lock: of the run. Checked before every write; methods raise `leases.LostError` if
        it is lost. None: on processes other than 0, which write nothing.
      writers: further writers of scalars.
      resume_at: step at which the run starts or resumes.
      evaluated: whether the evaluation due at that step is done.
      logged: steps in the log, as stored in the checkpoint; see `metrics.JsonlWriter`.
      window: sums since the last log line, as stored in the checkpoint.
      total_steps: last step of the run.
      log_period: number of steps that one line averages over.
      nonfinite: policy for steps that are not finite.
      spikes: policy for losses far above the usual.
      losses: of the last steps, as stored in the checkpoint.
      record_ids: step to the ids of the records in its batch, for `nonfinite.jsonl`.
      rates: throughput of the run.
      run_times: scalars of the time since the first start of the run.
    """

    def __init__(
        self,
        directory: paths.Place,
        *,
        lock: locks.Lock | None = None,
        writers: Sequence[metrics.Writer],
        resume_at: int,
        evaluated: bool,
        logged: logged_steps.State | None,
        window: Mapping[str, Sequence[float]],
        total_steps: int,
        log_period: int,
        nonfinite: run_settings.NonFinite,
        spikes: run_settings.LossSpikes = run_settings.LossSpikes(),
        losses: Sequence[Sequence[float]] = (),
        record_ids: Callable[[int], Sequence[str]],
        rates: Rates,
        run_times: Callable[[], metrics.Scalars] = dict,
    ):
        main_process = jax.process_index() == 0
        self._directory = directory
        self._log_file: metrics.JsonlWriter | None = None
        if main_process:
            self._log_file = metrics.JsonlWriter(
                directory / "metrics.jsonl",
                resume_at,
                evaluated=evaluated,
                logged=logged,
                lock=lock,
            )
            writers = (self._log_file, *writers)
        self._lock = lock
        self._output = _Output(writers if main_process else (), lock)
        self._window = metrics.SumAccumulator(window)
        self._total_steps = total_steps
        self._log_period = log_period
        self._nonfinite = nonfinite
        self._spikes = spikes
        self._losses = loss_spikes.Losses(spikes, losses)
        self._record_ids = record_ids
        self._rates = rates
        self._run_times = run_times
        self._line = metrics.ProgressLine(
            total_steps, resume_at, interactive=None if main_process else False
        )
        self._resume_at = resume_at
        self._pending: tuple[int, PyTree] | None = None
        self._skipped_in_a_row = 0
        # Counted since this process started; the window may begin before a restart.
        self._residues = 0.0

    def start(self) -> None:
        """Starts the time window of the first line."""
        self._rates.start(self._resume_at)

    def state(self) -> dict[str, Any]:
        """Sums since the last log line, and the steps logged, for a checkpoint."""
        logged = self._log_file.logged.state() if self._log_file else {}
        state = {"window": self._window.state(), "logged": logged}
        if self._spikes.policy != "off":
            state["losses"] = self._losses.state()
        return state

    def loss_limit(self, step: int) -> np.float32:
        """The largest loss with which `step` is not a spike."""
        return np.float32(self._losses.limit(step))

    @property
    def reached(self) -> int:
        """Last step in the log when the run resumed; 0 on processes other than 0."""
        return self._log_file.reached if self._log_file else 0

    @property
    def problems(self) -> list[str]:
        """A line for each incomplete log file."""
        return self._output.problems()

    def push(self, step: int, outputs: PyTree) -> None:
        """Takes a step's outputs as futures and reads those of the previous step."""
        previous, self._pending = self._pending, (step, outputs)
        self._read(previous)
        self._line.advance(step)

    def settle(self) -> None:
        """Reads the outputs of the last step, waiting for it."""
        previous, self._pending = self._pending, None
        self._read(previous)

    def flush(self) -> None:
        """Writes all lines to the disk or bucket; writers that failed try again."""
        self._output.flush()

    def _read(self, pending: tuple[int, PyTree] | None) -> None:
        if pending is None:
            return
        step, outputs = pending[0], jax.device_get(pending[1])
        self._residues += float(outputs["sums"].get("residues", (0,))[0])
        if outputs["finite"] and outputs.get("accepted", True):
            self._skipped_in_a_row = 0
            self._window.add(outputs["sums"])
            if "loss" in outputs:
                self._losses.add(step, float(outputs["loss"]))
        else:
            self._skipped_in_a_row += 1
            self._window.add({"skipped_steps": (1.0, 0.0)})
            if outputs["finite"]:
                self._on_spike(step, outputs)
            else:
                self._on_nonfinite(step, outputs)
        if step % self._log_period == 0 or step == self._total_steps:
            self._log(step, outputs)

    def _log(self, step: int, outputs: PyTree) -> None:
        means = metrics.with_perplexity(self._window.means())
        scalars = {f"train/{name}": value for name, value in means.items()}
        for name in ("learning_rate", "grad_norm", "param_norm", "update_norm"):
            scalars[f"train/{name}"] = float(outputs[name])
        scalars["train/skipped_steps"] = self._window.total("skipped_steps")
        timing = {**self._rates.scalars(step, self._residues), **self._run_times()}
        self._residues = 0.0
        self._output.write(step, scalars | timing)
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
            _dump(path, json.dumps(record), self._lock)
        nonfinite = self._nonfinite
        if (
            nonfinite.policy == "stop"
            or self._skipped_in_a_row > nonfinite.max_skipped_steps
        ):
            raise NonFiniteError(
                f"Step {step}: loss or gradient is not finite (gradient norm "
                f"{outputs['grad_norm']}), {self._skipped_in_a_row} step(s) in a row. "
                f"The step and the ids of its records are in {path}. "
                + _WAY_OUT[nonfinite.policy]
            )
        logging.warning("Step %d is not finite and was skipped; see %s.", step, path)

    def _on_spike(self, step: int, outputs: PyTree) -> None:
        path, spikes = self._directory / "loss_spikes.jsonl", self._spikes
        loss, limit = float(outputs["loss"]), self._losses.limit(step)
        if jax.process_index() == 0:
            record = {
                "step": step,
                "loss": loss,
                "limit": limit,
                "record_ids": list(self._record_ids(step)),
            }
            _dump(path, json.dumps(record), self._lock)
        problem = (
            f"Step {step}: the loss {loss:.4g} is above {limit:.4g}, "
            f"{spikes.factor:g} times the median of the last {spikes.window} steps "
            f"({self._skipped_in_a_row} step(s) in a row). The step and the ids of its "
            f"records are in {path}."
        )
        if spikes.policy == "rewind":
            raise rewinding.RewindError(
                loss_spikes.LossSpikeError(problem),
                latest=step - spikes.rewind_steps,
                skip_batches=spikes.skipped_batches,
                limit=spikes.max_rewinds,
            )
        if spikes.policy == "stop" or self._skipped_in_a_row > spikes.max_skipped_steps:
            raise loss_spikes.LossSpikeError(
                f"{problem} The same command will meet it again. Raise "
                "run_settings.LossSpikes.factor, or choose another policy."
            )
        logging.warning("%s It was skipped.", problem)

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Logs the results of an evaluation, by name of the data set."""
        for name, scalars in results.items():
            self._output.write(
                step, {f"{name}/{key}": value for key, value in scalars.items()}
            )
            self._line.note(f"step {step}  {name}: {_evaluation_text(scalars)}")

    def close(self) -> None:
        """Closes the log files and the progress line."""
        self._output.close()
        self._line.close()


class _Output:
    """Several writers as one; a writer that fails does not end the run.

    Our own writers keep unwritten lines and try again with the next line. A writer that
    raises anything but an OSError (TensorFlow's do) is removed. Without the lock of the
    run nothing is written.
    """

    def __init__(self, writers: Sequence[metrics.Writer], lock: locks.Lock | None):
        self._writers = list(writers)
        self._lock = lock
        self._failures: dict[str, str] = {}  # Path or name of a writer to its problem.

    def write(self, step: int, scalars: metrics.Scalars) -> None:
        """Writes one step's scalars with every writer."""
        self._each(lambda writer: writer.write_scalars(step, scalars), f"step {step}")

    def flush(self) -> None:
        """Lets the writers write what they have buffered."""
        self._each(lambda writer: _call(writer, "flush"), "buffered lines")

    def close(self) -> None:
        """Closes the writers and logs which files are incomplete."""
        self._each(lambda writer: _call(writer, "close", "flush"), "the last lines")
        for problem in self.problems():
            logging.error("%s", problem)

    def problems(self) -> list[str]:
        """A line for each incomplete log."""
        failures = sorted(self._failures.items())
        return [f"{place} is not complete: {why}." for place, why in failures]

    def _each(self, call: Callable[[metrics.Writer], None], what: str) -> None:
        for writer in list(self._writers):
            place = str(getattr(writer, "path", type(writer).__name__))
            try:
                _check(self._lock)
                call(writer)
            except leases.LostError:
                raise
            except OSError as error:
                self._fail(place, what, error, "tries again with every line")
            except Exception as error:
                self._writers.remove(writer)
                self._fail(place, what, error, "writes nothing more to it")
            else:
                if self._failures.pop(place, None):
                    logging.warning("%s is complete again.", place)

    def _fail(self, place: str, what: str, error: Exception, plan: str) -> None:
        if place in self._failures:
            return
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        reason = why.splitlines()[0]
        self._failures[place] = f"{what} and later could not be written ({reason})"
        logging.error(
            "%s: %s could not be written (%s). The run goes on and %s.",
            place,
            what,
            reason,
            plan,
        )


def _call(writer: metrics.Writer, *names: str) -> None:
    """Calls the first of these methods that a writer has; other writers need none."""
    for name in names:
        if hasattr(writer, name):
            getattr(writer, name)()
            return


def _check(lock: locks.Lock | None) -> None:
    """Raises if the lock is lost."""
    if lock is not None:
        lock.check(leases.RECENT_S)


def _dump(path: paths.Place, line: str, lock: locks.Lock | None) -> None:
    """Appends a line, unless a step repeated after a kill has written it before."""
    try:
        _check(lock)
        if path.exists() and line.encode() in path.read_bytes().splitlines():
            return
        appending.append_line(path, line)
    except leases.LostError:
        raise
    except OSError as error:
        logging.error("%s could not be written (%s): %s", path, error.strerror, line)


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
