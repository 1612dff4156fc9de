"""The training loop on one mesh with one jitted step.

In order: build, restore or initialise, compile, loop. This module uses neither gin,
flags nor TensorFlow: it takes objects and writes a model directory.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax
from jax.typing import DTypeLike
import numpy as np

from prottrans_jax import differences, types
from prottrans_jax.checkpoints import (
    checkpointing,
    opening,
    run_identity,
    stored_arrays,
    stored_steps,
)
from prottrans_jax.config import setting_types
from prottrans_jax.distributed import (
    agreement,
    barriers,
    peers,
    roll_call,
    stopping,
    watchdog,
)
from prottrans_jax.files import paths
from prottrans_jax.training import (
    earlier_logs,
    evaluation,
    event_files,
    infeed,
    logbook,
    metrics,
    saving,
    train_state,
    train_step,
)

# Every host opens its data before; slow storage may need minutes.
_AGREEMENT_TIMEOUT_S = 900.0
_MAX_STEPS = 2**31 - 1  # `TrainState.step` is int32.


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of a finished or stopped run.

    Attributes:
      step: last step done.
      evaluation: scalars of the last evaluation, by data set name.
      seconds: wall time by cause, "compute" included.
      exit_code: 0, or 128 + the signal that ended the run before it was done.
      checkpoint: directory of the last checkpoint.
      problems: a line for each incomplete log file.
    """

    step: int
    evaluation: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    exit_code: int
    checkpoint: pathlib.Path
    problems: Sequence[str] = ()


def train(
    *,
    model_dir: str,
    objective: types.Objective,
    train_data: types.Loader,
    eval_data: Mapping[str, types.Loader] | None = None,
    optimizer: types.Optimizer,
    partitioner: types.Partitioner,
    total_steps: int,
    seed: int = 0,
    num_microbatches: int = 1,
    eval_period: int = 1_000,
    eval_batches: int | None = None,
    checkpoint_period: int = 1_000,
    keep: int = 3,
    keep_period: int | None = None,
    save_dtype: DTypeLike | None = None,
    log_period: int = 100,
    on_nonfinite: str = "stop",
    max_skipped_steps: int = 10,
    profile_steps: tuple[int, int] | None = None,
    init_from: str | None = None,
    on_save_error: str = "retry",
    accept_config_changes: bool = False,
    accept_lost_steps: bool = False,
    startup_timeout_s: float = 3_600.0,
    step_timeout_s: float = 1_800.0,
    step_timeout_factor: float = 50.0,
    writers: Callable[[], Sequence[metrics.Writer]] = tuple,
    config_text: str = "",
) -> Summary:
    """Trains until `total_steps`, resuming from the newest checkpoint in `model_dir`.

    The result depends on the arguments alone: a run that was stopped or killed and
    resumed ends with the same bits as an uninterrupted one.

    Args:
      model_dir: directory for checkpoints, logs and the resolved configuration.
      objective: loss on a batch; owns the model.
      train_data: see `data.rows.loader.RowLoader`: `batch_size`, `vocab_size`,
        `batch(index, rows)`, `state(index)`, `restore(state)`.
      eval_data: name to a finite loader.
      optimizer: see `optimizers`.
      partitioner: see `partitioning.Partitioner`.
      total_steps: optimizer steps of the whole run, including those before a resume.
      seed: of initial parameters and dropout.
      num_microbatches: number of slices of a batch; must divide the batch size.
      eval_period: steps between evaluations; one more follows the last step.
      eval_batches: batches of an evaluation; None takes the whole split.
      checkpoint_period: steps between checkpoints; one more follows the last step.
      keep: number of newest checkpoints to keep.
      keep_period: checkpoints at multiples of this step number are never deleted.
      save_dtype: of saved parameters, e.g. "bfloat16"; None: their own dtype.
      log_period: number of steps that one log line averages over.
      on_nonfinite: "stop" at a loss or gradient that is not finite, after writing the
        step and the ids of its records to a file; or "skip" the update.
      max_skipped_steps: "skip" stops after more consecutive steps than this.
      profile_steps: [first, last) steps to profile into `model_dir/profile`.
      init_from: checkpoint of the initial parameters: of another run, or "hf:", "t5x:"
        or "mtf:" and a folder; see `checkpoints.opening`. Ignored when `model_dir`
        already holds a checkpoint.
      on_save_error: "stop" ends the run at the step at which a failed save is noticed,
        at most one step after the failure. "retry" saves that step at once and stops if
        this fails too. With several processes the run stops in both cases.
      accept_config_changes: resume although the configuration differs.
      accept_lost_steps: resume from any sound checkpoint, step 0 included, repeat the
        steps of damaged ones, and rename these. Otherwise a run goes back by at most
        `keep` checkpoints.
      startup_timeout_s: limit of compilation; then the process ends with stack traces.
      step_timeout_s: limit of each later step, batch of an evaluation, or save.
      step_timeout_factor: limit of a step as a multiple of the median of previous
        steps, at least 120 s and at most `step_timeout_s`.
      writers: creates further writers of scalars, e.g. `clu.metric_writers`, once
        `model_dir` is locked. Event files below `model_dir/tensorboard` are truncated
        first, so that no step is in them twice.
      config_text: resolved gin configuration, stored in every checkpoint.

    Raises:
      logbook.NonFiniteError: see `on_nonfinite`.
      checkpointing.SaveError: see `on_save_error`.
      manifests.CheckpointError: no sound checkpoint is new enough, or another run
        writes to `model_dir`.
      ValueError: the model directory holds another run; differences are listed.
      agreement.DisagreementError: hosts differ in settings, data or packages.
    """
    if on_save_error not in ("retry", "stop"):
        raise ValueError(f"on_save_error={on_save_error!r}: choose 'retry' or 'stop'.")
    _check_arguments(
        train_data.batch_size,
        num_microbatches,
        total_steps=total_steps,
        eval_period=eval_period,
        eval_batches=1 if eval_batches is None else eval_batches,
        keep=keep,
        keep_period=1 if keep_period is None else keep_period,
        checkpoint_period=checkpoint_period,
        log_period=log_period,
    )
    for name, limit in (
        ("startup_timeout_s", startup_timeout_s),
        ("step_timeout_s", step_timeout_s),
        ("step_timeout_factor", step_timeout_factor),
    ):
        setting_types.check_range(name, limit, exclusive=True)
    if profile_steps is not None and not 0 <= profile_steps[0] < profile_steps[1]:
        raise ValueError(
            f"profile_steps={list(profile_steps)}: must be [first, last), the first "
            "step at least 0 and less than the last."
        )
    nonfinite = logbook.NonFinitePolicy(on_nonfinite, max_skipped_steps)
    directory = paths.local(model_dir, "model_dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"model_dir={model_dir!r} cannot be used: {error}") from error
    watch = metrics.Stopwatch()
    with watch.cause("initialize"):
        run = _Run(
            objective, optimizer, partitioner, train_data, seed, num_microbatches, watch
        )
        evaluator = evaluation.Evaluator(run.plan, partitioner, eval_data or {})
    evaluations: dict[str, dict[str, float]] = {}
    identity = run_identity.identity(
        objective=objective,
        optimizer=optimizer,
        seed=seed,
        batch_size=train_data.batch_size,
        init_from=(
            None if init_from is None else paths.whole_source(init_from, "init_from")
        ),
    )
    # Hosts that compute in different types would compile different programs.
    settings = {**identity, "dtype": _dtype_of(objective)}
    _check_hosts_agree(config_text, settings, train_data, eval_data or {})

    with contextlib.ExitStack() as stack:
        other_processes = peers.watch(
            directory / f"lost_host.{jax.process_index()}.txt"
        )
        progress = stack.enter_context(
            watchdog.Watchdog(
                startup_timeout_s,
                step_timeout_s,
                step_timeout_factor,
                directory / f"stacks.{jax.process_index()}.txt",
                other_processes.report_hang,
            )
        )
        stack.enter_context(other_processes)
        checkpointer = stack.enter_context(
            checkpointing.Checkpointer(
                directory / "checkpoints",
                keep=keep,
                keep_period=keep_period,
                save_dtype=save_dtype,
            )
        )
        saves = saving.Saves(checkpointer, on_save_error)
        with watch.cause("checkpoint"):
            restored = _restore(
                checkpointer,
                run,
                identity,
                accept_config_changes,
                # The run may resume from any of the newest `keep` checkpoints.
                None if accept_lost_steps else max(keep, 2) * checkpoint_period,
            )
        if restored is None:
            with watch.cause("initialize"):
                state = run.initialize(seed, init_from)
            step, next_batch, metadata = 0, 0, {}
        else:
            state, step = restored.state, restored.step
            metadata = restored.metadata
            next_batch = train_data.restore(metadata["loader"])
        evaluated = metadata.get("evaluated", False)
        other_processes.step = step
        # Step n, counted from 0, takes batch `first_batch + n`.
        first_batch = next_batch - step

        main_process = jax.process_index() == 0
        if main_process:
            if restored is None:
                earlier_logs.set_aside(directory, config_text)
            event_files.cut_back(directory, step, evaluated)
            _write_config(directory / earlier_logs.CONFIG, config_text)
        logging.info(
            "%s parameters on %d device(s) %s; batch %d rows in %d microbatch(es).",
            f"{run.plan.num_params:,}",
            partitioner.mesh.size,
            dict(partitioner.mesh.shape),
            train_data.batch_size,
            num_microbatches,
        )
        journal = logbook.Journal(
            directory,
            writers=writers() if main_process else (),
            resume_at=step,
            evaluated=evaluated,
            window=metadata.get("window", {}),
            logged=metadata.get("logged"),
            total_steps=total_steps,
            log_period=log_period,
            nonfinite=nonfinite,
            record_ids=lambda step: train_data.example_ids(first_batch + step - 1),
            rates=logbook.Rates(watch, run.flops, partitioner.mesh),
        )
        stack.callback(journal.close)
        # Steps lost with damaged checkpoints were logged by the restore.
        expected = checkpoint_period + (restored.lost_steps if restored else 0)
        if journal.reached - step > expected:
            logging.warning(
                "The log reaches step %d and the newest checkpoint is of step %d: %d "
                "steps are repeated.",
                journal.reached,
                step,
                journal.reached - step,
            )
        stack.enter_context(partitioner.scope())
        stop = stack.enter_context(stopping.StopSignal())

        def evaluate(step: int, log: bool = True) -> None:
            progress.beat(f"evaluation at step {step}", startup_timeout_s)  # compiles
            with watch.cause("evaluate"):
                evaluations.update(
                    evaluator(
                        state.params,
                        eval_batches,
                        after_batch=lambda: progress.beat(f"evaluation at step {step}"),
                    )
                )
            if log:
                journal.evaluated(step, evaluations)

        def save(step: int, evaluated: bool) -> None:
            progress.beat(f"checkpoint of step {step}")
            metadata = {
                "identity": identity,
                # Not part of a run, but of a model exported from it.
                "dtype": settings["dtype"],
                "loader": train_data.state(first_batch + step),
                **journal.state(),
                "evaluated": evaluated,
                "config": config_text,
            }
            with watch.cause("checkpoint"):
                saves.save(step, state, metadata)

        def evaluation_is_due(step: int) -> bool:
            return step > 0 and (step % eval_period == 0 or step == total_steps)

        if restored is None:
            save(0, evaluated=False)
        elif evaluation_is_due(step) and not evaluated:
            evaluate(step)
            evaluated = True
        evaluated_at = step if evaluated else None
        if step < total_steps:
            progress.beat("compilation and the first step", startup_timeout_s)
            with watch.cause("compile"):
                compiled = run.step.lower(state, run.abstract_batch).compile()
        feed = stack.enter_context(
            infeed.Infeed(run.make_batch, next_batch, first_batch + total_steps)
        )
        batches = iter(feed)
        profile = stack.enter_context(_Profile(directory / "profile", profile_steps))
        journal.start()
        must_stop = False
        while step < total_steps and not must_stop:
            profile.before(step)
            with watch.cause("data"):
                _, batch = next(batches)
            state, outputs = compiled(state, batch)
            step += 1
            # Reads the outputs of the previous step: while the host waits for step n,
            # the device computes step n + 1.
            journal.push(step, outputs)
            progress.beat(f"step {step + 1}", is_step=True)
            other_processes.step = step + 1
            must_stop = stop.should_stop(step)
            at_save = step % checkpoint_period == 0 or step == total_steps or must_stop
            at_save |= saves.failed(step)
            at_eval = evaluation_is_due(step) and not must_stop
            if at_save or at_eval:
                journal.settle()
            # Evaluate first: a checkpoint on disk implies that its log is on disk too.
            if at_eval:
                evaluate(step)
                evaluated_at = step
            if at_save:
                save(step, evaluated=at_eval)
        if must_stop:
            logging.warning("Stopped by a signal; step %d is being saved.", step)
        with watch.cause("checkpoint"):
            if saves.wait(step):
                save(step, evaluated=evaluated_at == step)
                checkpointer.wait()
        done = step == total_steps and evaluated_at == step
        if done and not evaluations:  # Logged by an earlier process of the run.
            evaluate(step, log=False)
    return Summary(
        step=step,
        evaluation=evaluations,
        seconds=watch.split(),
        exit_code=0 if done else stop.exit_code,
        checkpoint=directory / "checkpoints" / str(step),
        problems=journal.problems,
    )


def _check_hosts_agree(
    config_text: str,
    settings: Mapping[str, Any],
    train_data: Any,
    eval_data: Mapping[str, Any],
) -> None:
    """Raises `DisagreementError` if hosts differ in packages, settings or data."""
    if jax.process_count() == 1:
        return
    data = {"train": train_data, **eval_data}
    agreement.check(
        lambda name, value: barriers.gather(name, value, _AGREEMENT_TIMEOUT_S),
        roll_call.whoami(),
        {
            "package": agreement.packages(),
            "setting": agreement.settings_of(config_text) or settings,
            "data": {name: loader.state(0) for name, loader in data.items()},
        },
    )


def _restore(
    checkpointer, run, identity, accept_changes, max_lost_steps: int | None
) -> stored_steps.Restored | None:
    """The newest sound checkpoint of this run; None if the run has no checkpoint."""
    try:
        restored = checkpointer.restore(
            run.plan.abstract,
            max_lost_steps=max_lost_steps,
            way_out="or set trainer.train.accept_lost_steps=True to repeat these steps",
        )
    except stored_arrays.MismatchError as error:
        # Different settings explain more than different arrays.
        _check_identity(run_identity.of_checkpoint(error.metadata), identity, None)
        raise
    if restored is None:
        return None
    saved = run_identity.of_checkpoint(restored.metadata)
    _check_identity(saved, identity, accept_changes)
    logging.info("Resuming from the checkpoint of step %d.", restored.step)
    return restored


def _write_config(path: pathlib.Path, text: str) -> None:
    """Writes the configuration for people; every checkpoint holds it too."""
    if not text:
        return
    try:
        path.write_text(text)
    except OSError as error:
        logging.error(
            "%s could not be written (%s). The run goes on; its checkpoints hold the "
            "configuration.",
            path,
            error.strerror,
        )


class _Profile(contextlib.AbstractContextManager):
    """Profiles the steps [first, last) into a directory for TensorBoard."""

    def __init__(self, directory: pathlib.Path, steps: tuple[int, int] | None):
        self._directory = directory
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts or stops the trace if that is due before the next step."""
        if self._steps is None:
            return
        first, last = self._steps
        if first <= step < last and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step >= last:
            self.__exit__()

    def __exit__(self, *unused) -> None:
        if self._running:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._running = False


class _Run:
    """Objects built once from the arguments: layout, step function, batches."""

    def __init__(
        self, objective, optimizer, partitioner, data, seed, num_microbatches, watch
    ):
        train_state.check_vocabulary(objective, data)
        self.partitioner = partitioner
        self.data = data
        self.rows = partitioner.host_rows(data.batch_size)
        with watch.cause("data"):
            self.batch_shapes = train_state.batch_shapes(data)
        self.abstract_batch = {
            name: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=partitioner.batch_sharding
            )
            for name, shape in self.batch_shapes.items()
        }
        self.plan = train_state.plan(
            objective, optimizer, partitioner, self.batch_shapes
        )
        self.step = train_step.make_train_step(
            self.plan,
            optimizer,
            partitioner,
            seed=seed,
            num_microbatches=num_microbatches,
        )
        self.flops = objective.flops(self.batch_shapes)

    def initialize(self, seed: int, init_from: str | None) -> train_state.TrainState:
        """The state of step 0, from random parameters or those of a checkpoint."""
        params = None
        if init_from is not None:
            model = getattr(self.plan.objective, "model", None)
            params = opening.load_params(
                init_from, self.plan.abstract.params, getattr(model, "config", None)
            )
            logging.info("Parameters start from %s.", init_from)
        return train_state.initialize(
            self.plan, self.partitioner, self.batch_shapes, seed, params
        )

    def make_batch(self, index: int) -> dict[str, jax.Array]:
        """The global batch `index`; this process provides its own rows."""
        rows = self.data.batch(index, rows=self.rows)
        return self.partitioner.put_batch(rows, self.data.batch_size)


def _check_arguments(batch_size: int, num_microbatches: int, **counts: int) -> None:
    for name, value in {**counts, "num_microbatches": num_microbatches}.items():
        setting_types.check_range(name, value, 1)
    if counts["total_steps"] > _MAX_STEPS:
        raise ValueError(
            f"total_steps={counts['total_steps']:,}: a run has at most {_MAX_STEPS:,} "
            "steps."
        )
    if batch_size % num_microbatches:
        raise ValueError(
            f"num_microbatches={num_microbatches} does not divide the batch of "
            f"{batch_size} rows. Choose a divisor."
        )


def _dtype_of(objective: types.Objective) -> str | None:
    """Type of the activations of the objective's model; None without a model."""
    model = getattr(objective, "model", None)
    return None if model is None else np.dtype(model.compute.dtype).name


def _check_identity(
    saved: Mapping[str, Any], identity: Mapping[str, Any], accept: bool | None
) -> None:
    """Raises if the configurations differ; `accept=True` only warns.

    Args:
      saved: identity in the checkpoint.
      identity: of this run.
      accept: None: the change cannot be accepted, and the error does not offer it.
    """
    source = identity["init_from"]
    if source and saved.get("init_from"):
        if paths.same_source(saved["init_from"], source):
            saved = {**saved, "init_from": source}
    lines = differences.lines(saved, identity)
    if not lines:
        return
    listing = "\n".join(f"  {line}" for line in lines)
    if saved.get("seed") != identity["seed"]:
        accept = None  # Another seed draws other rows.
    if not accept:
        way_out = (
            "."
            if accept is None
            else " (INITIAL_CHECKPOINT_PATH = 'DIR' starts it from the parameters of "
            "this one), or set trainer.train.accept_config_changes=True to continue "
            "with the new values."
        )
        raise ValueError(
            "The model directory holds a run of another configuration "
            f"(saved -> new):\n{listing}\nChoose another model_dir{way_out}"
        )
    logging.warning("Continuing with changed values:\n%s", listing)
