"""Settings of the training loop in groups; each group checks its own values.

A gin file binds them as `run_settings.Checkpoints.period = 5000`. The defaults here are
for `trainer.train` called from Python. `gin/runs/pretrain.gin` has its own, many as
macros such as CHECKPOINT_PERIOD; docs/pretraining.md lists those.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from jax.typing import DTypeLike

from prottrans_jax import types
from prottrans_jax.config import setting_types


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved, and which of them are kept.

    Attributes:
      period: steps between checkpoints; one more follows the last step.
      keep: number of newest checkpoints to keep.
      keep_period: checkpoints at multiples of this step number are never deleted.
      save_dtype: of saved parameters, e.g. "bfloat16"; None: their own dtype.
      on_save_error: "stop" ends the run at the step at which a failed save is noticed,
        at most one step after the failure. "retry" saves that step at once and stops if
        this fails too. With several processes the run stops in both cases.
    """

    period: int = 1_000
    keep: int = 3
    keep_period: int | None = None
    save_dtype: DTypeLike | None = None
    on_save_error: str = "retry"

    def __post_init__(self):
        for name in ("period", "keep", "keep_period"):
            setting_types.check_range(f"Checkpoints.{name}", getattr(self, name), 1)
        if self.on_save_error not in ("retry", "stop"):
            raise ValueError(
                f"Checkpoints.on_save_error={self.on_save_error!r}: choose 'retry' or "
                "'stop'."
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When the validation data are evaluated, and how much of them.

    Attributes:
      period: steps between evaluations; one more follows the last step.
      batches: batches of an evaluation; None takes the whole split.
      downstream: a further evaluation of the model, on process 0, such as
        `downstream.in_training.DevelopmentEvaluation`: called with the objective, its
        parameters in host memory and a function to call often; returns scalars, which
        are logged as "downstream/NAME". It must not change the training.
      downstream_period: steps between these; a multiple of `period`.
    """

    period: int = 1_000
    batches: int | None = None
    downstream: (
        Callable[
            [types.Objective, types.Params, Callable[[], None]], Mapping[str, float]
        ]
        | None
    ) = None
    downstream_period: int = 10_000

    def __post_init__(self):
        for name in ("period", "batches", "downstream_period"):
            setting_types.check_range(f"Evaluation.{name}", getattr(self, name), 1)
        if self.downstream is not None and self.downstream_period % self.period:
            raise ValueError(
                f"Evaluation.downstream_period={self.downstream_period:,} is no "
                f"multiple of Evaluation.period={self.period:,}."
            )


@dataclasses.dataclass(frozen=True)
class Best:
    """Which evaluation is the best, and after how many worse ones the run ends.

    The checkpoint of the best step is kept besides the newest ones.

    Attributes:
      metric: name of the data set, "/", name of the metric: "validation/loss"; None:
        no step is the best.
      mode: "min" if a smaller metric is better, or "max".
      patience: the run ends after so many evaluations in a row that are not better than
        the best one; None: never.
    """

    metric: str | None = None
    mode: str = "min"
    patience: int | None = None

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise ValueError(f"Best.mode={self.mode!r}: choose 'min' or 'max'.")
        setting_types.check_range("Best.patience", self.patience, 1)
        if self.metric is None and self.patience is not None:
            raise ValueError(
                f"Best.patience={self.patience} needs Best.metric, such as "
                "'validation/loss'."
            )


@dataclasses.dataclass(frozen=True)
class Logs:
    """What is logged of the steps.

    Attributes:
      period: number of steps that one log line averages over.
      profile_steps: [first, last) steps to profile into `model_dir/profile`.
      profile_steps_after_signal: number of steps that SIGUSR1 to a process profiles.
      writer: called with model_dir, on process 0; returns a further writer of scalars
        with a method `write_scalars(step, scalars)`, such as
        `@wandb_writer.open_writer` or `@metric_writers.create_default_writer` of clu.
    """

    period: int = 100
    profile_steps: tuple[int, int] | None = None
    profile_steps_after_signal: int = 5
    writer: Callable[[str], Any] | None = None

    def __post_init__(self):
        for name in ("period", "profile_steps_after_signal"):
            setting_types.check_range(f"Logs.{name}", getattr(self, name), 1)
        steps = self.profile_steps
        if steps is not None and not 0 <= steps[0] < steps[1]:
            raise ValueError(
                f"Logs.profile_steps={list(steps)}: must be [first, last), the first "
                "step at least 0 and less than the last."
            )


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts, and when it may resume.

    `init_from` and `continue_from` are ignored when the run already has a checkpoint.

    Attributes:
      init_from: checkpoint of the initial parameters: of another run, or "hf:", "t5x:"
        or "mtf:" and a folder; see `checkpoints.opening`. The run starts at step 0 with
        new optimizer state.
      continue_from: run whose parameters, optimizer state and step go on: the model_dir
        of this library or of T5X (with Adafactor), or one step of it. The data start at
        their first row, and memories are empty. `total_steps` counts the steps of both
        runs.
      accept_config_changes: resume although the configuration differs.
      accept_lost_steps: resume from any sound checkpoint, step 0 included, repeat the
        steps of damaged ones, and rename these. Otherwise a run goes back by at most
        `Checkpoints.keep` checkpoints.
    """

    init_from: str | None = None
    continue_from: str | None = None
    accept_config_changes: bool = False
    accept_lost_steps: bool = False

    def __post_init__(self):
        if self.init_from is not None and self.continue_from is not None:
            raise ValueError(
                f"Start.init_from={self.init_from!r} (in gin INITIAL_CHECKPOINT_PATH) "
                "takes only parameters, and "
                f"Start.continue_from={self.continue_from!r} (CONTINUE_FROM) the whole "
                "state: set one of them."
            )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of waiting, in seconds; beyond one the process ends with stack traces.

    Attributes:
      startup_s: of compilation.
      step_s: of each later step, batch of an evaluation, or save.
      step_factor: of a step, as a multiple of the median of previous steps; at least
        120 s and at most `step_s`.
    """

    startup_s: float = 3_600.0
    step_s: float = 1_800.0
    step_factor: float = 50.0

    def __post_init__(self):
        for name in ("startup_s", "step_s", "step_factor"):
            setting_types.check_range(
                f"Limits.{name}", getattr(self, name), exclusive=True
            )


@dataclasses.dataclass(frozen=True)
class Notices:
    """Which announcements, besides SIGTERM and SIGINT, stop the run with a checkpoint.

    Attributes:
      metadata_server: pre-emption and host maintenance, as Google Cloud's metadata
        server announces them. Without it the run opens no connection.
    """

    metadata_server: bool = False


@dataclasses.dataclass(frozen=True)
class ReplicaChecks:
    """Comparison of the replicas of parameters, which finds corruption of a device.

    When replicas differ, the run names host and device and goes back to its newest
    checkpoint. Replicas are also compared before each save, so no checkpoint holds a
    difference.

    Attributes:
      period: steps between comparisons; 0: none. Parameters of which no two devices
        hold the same part, as on one device, cannot be compared.
      max_rewinds: the run ends when it has gone back this often to the same checkpoint.
    """

    period: int = 0
    max_rewinds: int = 3

    def __post_init__(self):
        for name in ("period", "max_rewinds"):
            setting_types.check_range(f"ReplicaChecks.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class LossSpikes:
    """Policy for a step whose loss is finite but far above that of the steps before.

    The policy is deterministic: a resumed run meets the same spikes in the same way.

    Attributes:
      policy: "off"; "stop"; "skip": keep the state from before the step and continue;
        "rewind": go back to a checkpoint and leave out batches (Chowdhery et al. 2022,
        PaLM, section 5.1).
      factor: a spike is a loss of more than this multiple of the median of the window.
      window: number of losses in the window. No step before the window is full is a
        spike.
      max_skipped_steps: "skip" stops after more consecutive spikes than this.
      rewind_steps: "rewind" takes the newest checkpoint at least this many steps before
        the spike. Enough checkpoints must be kept. Later ones are deleted.
      skipped_batches: batches that "rewind" leaves out after that checkpoint.
      max_rewinds: "rewind" stops after this many rewinds without a new checkpoint.
    """

    policy: str = "off"
    factor: float = 1.5
    window: int = 100
    max_skipped_steps: int = 10
    rewind_steps: int = 100
    skipped_batches: int = 200
    max_rewinds: int = 3

    def __post_init__(self):
        if self.policy not in ("off", "stop", "skip", "rewind"):
            raise ValueError(
                f"LossSpikes.policy={self.policy!r}: choose 'off', 'stop', 'skip' or "
                "'rewind'."
            )
        setting_types.check_range("LossSpikes.factor", self.factor, 1, exclusive=True)
        for name in ("window", "max_skipped_steps", "rewind_steps", "skipped_batches"):
            setting_types.check_range(f"LossSpikes.{name}", getattr(self, name), 1)
        setting_types.check_range("LossSpikes.max_rewinds", self.max_rewinds)


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """Policy for a step whose loss or gradient is not finite.

    Attributes:
      policy: "stop", after writing the step and the ids of its records to a file; or
        "skip": keep the state from before the step and continue.
      max_skipped_steps: "skip" stops after more consecutive steps than this.
    """

    policy: str = "stop"
    max_skipped_steps: int = 10

    def __post_init__(self):
        if self.policy not in ("stop", "skip"):
            raise ValueError(
                f"NonFinite.policy={self.policy!r}: choose 'stop' or 'skip'."
            )
