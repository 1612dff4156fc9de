"""The training loop on one mesh with one jitted step.

In order: build, restore or initialise, compile, loop. This module uses neither gin,
flags nor TensorFlow: it takes objects and writes a model directory.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import tempfile

from absl import logging
import jax
import numpy as np

from prottrans_jax import types
from prottrans_jax.checkpoints import checkpointing
from prottrans_jax.config import setting_types
from prottrans_jax.distributed import (
    agreement,
    barriers,
    peers,
    preemption,
    stopping,
    watchdog,
)
from prottrans_jax.files import buckets, paths
from prottrans_jax.training import (
    best_steps,
    downstream_evaluation,
    earlier_logs,
    evaluation,
    event_files,
    goodput,
    infeed,
    integrity,
    logbook,
    metrics,
    profiling,
    resuming,
    rewinding,
    run_settings,
    saving,
    train_state,
    train_step,
)

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
      is_finished: whether no step is left: not if the run was stopped.
      best_step: step with the best evaluation; None without `run_settings.Best`.
      run_seconds: wall time of the whole run by bucket, over all its processes; empty
        on processes other than 0. See `goodput`.
      problems: a line for each incomplete log file.
    """

    step: int
    evaluation: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    exit_code: int
    checkpoint: paths.Place
    is_finished: bool
    best_step: int | None
    run_seconds: Mapping[str, float]
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
    checkpoints: run_settings.Checkpoints = run_settings.Checkpoints(),
    evaluation: run_settings.Evaluation = run_settings.Evaluation(),
    best: run_settings.Best = run_settings.Best(),
    logs: run_settings.Logs = run_settings.Logs(),
    start: run_settings.Start = run_settings.Start(),
    limits: run_settings.Limits = run_settings.Limits(),
    notices: run_settings.Notices = run_settings.Notices(),
    nonfinite: run_settings.NonFinite = run_settings.NonFinite(),
    loss_spikes: run_settings.LossSpikes = run_settings.LossSpikes(),
    replica_checks: run_settings.ReplicaChecks = run_settings.ReplicaChecks(),
    writers: Callable[[], Sequence[metrics.Writer]] = tuple,
    config_text: str = "",
    started: float | None = None,
) -> Summary:
    """Trains until `total_steps`, resuming from the newest checkpoint in `model_dir`.

    `best.patience` may end the run earlier.

    The result depends on the arguments alone: a run that was stopped or killed and
    resumed ends with the same bits as an uninterrupted one.

    In gin, `gin/runs/pretrain.gin` binds the arguments to macros such as TRAIN_STEPS,
    with its own defaults; docs/pretraining.md lists them.

    Args:
      model_dir: directory for checkpoints, logs and the resolved configuration, which
        may be in a bucket.
      objective: loss on a batch; owns the model.
      train_data: see `types.Loader`, e.g. `data.rows.loader.RowLoader`.
      eval_data: name to a finite loader.
      optimizer: see `optimizers`.
      partitioner: see `partitioning.Partitioner`.
      total_steps: optimizer steps of the whole run, including those before a resume.
      seed: of initial parameters and dropout.
      num_microbatches: number of slices of a batch; must divide the batch size.
      checkpoints: when checkpoints are saved, and which are kept.
      evaluation: when and how much is evaluated.
      best: which evaluation is the best; when the run ends without a better one.
      logs: what is logged of the steps.
      start: where the run starts, and when it may resume.
      limits: limits of waiting.
      notices: what stops the run besides signals.
      nonfinite: policy for a loss or gradient that is not finite.
      loss_spikes: policy for a finite loss far above the usual.
      replica_checks: when the replicas of parameters are compared.
      writers: creates further writers of scalars, e.g. `clu.metric_writers`, once
        `model_dir` is locked. Event files below `model_dir/tensorboard` are truncated
        first, so that no step is in them twice.
      config_text: resolved gin configuration, stored in every checkpoint.
      started: time at which this process started, in seconds since 1970, for the sums
        of `goodput`; None: now.

    Raises:
      logbook.NonFiniteError: see `run_settings.NonFinite`.
      loss_spikes.LossSpikeError: see `run_settings.LossSpikes`.
      replicas.CorruptionError: see `run_settings.ReplicaChecks`.
      checkpointing.SaveError: see `run_settings.Checkpoints`.
      manifests.CheckpointError: no sound checkpoint is new enough, or another run
        writes to `model_dir`.
      leases.LostError: another run took over `model_dir`, in a bucket, while this one
        was paused or cut off.
      ValueError: the model directory holds another run; differences are listed.
      agreement.DisagreementError: hosts differ in settings, data or packages.
    """
    _check_arguments(train_data.batch_size, num_microbatches, total_steps)
    directory = _make_directory(model_dir)
    eval_data = eval_data or {}
    watch = metrics.Stopwatch()
    ledger = goodput.Ledger(directory / goodput.NAME, watch.split, started)
    with watch.cause("initialize"):
        run = _Run(
            objective,
            optimizer,
            partitioner,
            train_data,
            eval_data,
            seed,
            num_microbatches,
            loss_spikes.policy != "off",
            watch,
        )
    identity = resuming.identity_of(run.plan, seed, train_data.batch_size, start)
    # Hosts that compute in different types would compile different programs.
    computed = {**identity, "dtype": _dtype_of(objective)}
    resuming.check_hosts_agree(
        agreement.settings_of(config_text) or computed,
        {"train": train_data, **eval_data},
    )
    comparison = integrity.Comparison(replica_checks, run.plan)

    def attempt(rewinds: rewinding.Rewinds) -> Summary:
        evaluations: dict[str, dict[str, float]] = {}
        with contextlib.ExitStack() as stack:
            other_processes = peers.watch(
                _local_file(directory, f"lost_host.{jax.process_index()}.txt")
            )
            progress = stack.enter_context(
                watchdog.Watchdog(
                    limits.startup_s,
                    limits.step_s,
                    limits.step_factor,
                    _local_file(directory, f"stacks.{jax.process_index()}.txt"),
                    other_processes.report_hang,
                )
            )
            stack.enter_context(other_processes)
            checkpointer = stack.enter_context(
                checkpointing.Checkpointer(
                    directory / "checkpoints",
                    keep=checkpoints.keep,
                    keep_period=checkpoints.keep_period,
                    save_dtype=checkpoints.save_dtype,
                )
            )
            saves = saving.Saves(checkpointer, checkpoints.on_save_error)
            with watch.cause("checkpoint"):
                if rewinds.pending and rewinds.pending.latest is not None:
                    checkpointer.delete_after(rewinds.pending.latest)
                restored = resuming.restore(
                    checkpointer,
                    run.plan,
                    identity,
                    start,
                    # The run may resume from any of the newest `keep` checkpoints.
                    max_lost_steps=max(checkpoints.keep, 2) * checkpoints.period,
                )
            if restored is None:
                with watch.cause("initialize"):
                    state, step = resuming.first_state(
                        run.plan, identity, seed, start, total_steps
                    )
                next_batch, metadata = 0, {}
            else:
                state, step = restored.state, restored.step
                metadata = restored.metadata
                next_batch = train_data.restore(metadata["loader"])
            evaluated = metadata.get("evaluated", False)
            best_step = best_steps.BestStep(best, metadata.get("best"))
            checkpointer.keep_besides(best_step.step)
            next_batch += rewinds.resume(step)
            other_processes.step = step
            ledger.begin(step, checkpointer.lock)
            stack.callback(ledger.close)
            # After a resume, step n (from 0) reads batch `first_batch + n`.
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
                lock=checkpointer.lock,
                writers=_open_writers(writers, logs, model_dir) if main_process else (),
                resume_at=step,
                evaluated=evaluated,
                window=metadata.get("window", {}),
                logged=metadata.get("logged"),
                total_steps=total_steps,
                log_period=logs.period,
                nonfinite=nonfinite,
                spikes=loss_spikes,
                losses=metadata.get("losses", ()),
                record_ids=lambda step: train_data.example_ids(first_batch + step - 1),
                rates=logbook.Rates(watch, run.flops_per_step, partitioner.mesh),
                run_times=lambda: ledger.account.scalars(),
            )
            stack.callback(journal.close)
            # Steps lost with damaged checkpoints were logged by the restore.
            expected = checkpoints.period + (restored.lost_steps if restored else 0)
            if journal.reached - step > expected:
                logging.warning(
                    "The log reaches step %d and the newest checkpoint is of step %d: "
                    "%d steps are repeated.",
                    journal.reached,
                    step,
                    journal.reached - step,
                )
            stack.enter_context(partitioner.scope())
            stop = stack.enter_context(stopping.StopSignal(rewinds.stop_signal))
            stack.callback(lambda: rewinds.keep_signal(stop.number))
            profile = stack.enter_context(
                profiling.Profile(
                    directory / "profile",
                    logs.profile_steps,
                    logs.profile_steps_after_signal,
                )
            )
            if notices.metadata_server:
                stack.enter_context(preemption.MetadataNotices(stop.request))

            def evaluate(step: int, log: bool = True) -> None:
                doing = f"evaluation at step {step}"
                # The first one compiles.
                progress.beat(doing, None if evaluations else limits.startup_s)
                with watch.cause("evaluate"):
                    results = run.evaluator(
                        state.params,
                        evaluation.batches,
                        after_batch=lambda: progress.beat(doing),
                    )
                    evaluations.pop(downstream_evaluation.NAME, None)
                    if downstream_evaluation.is_due(evaluation, step, total_steps):
                        results[downstream_evaluation.NAME] = (
                            downstream_evaluation.evaluate(
                                evaluation,
                                objective,
                                state.params,
                                lambda: progress.beat(doing, limits.startup_s),
                                limits.startup_s,
                            )
                        )
                evaluations.update(results)
                if log:
                    journal.evaluated(step, evaluations)
                    best_step.evaluated(step, evaluations)
                    checkpointer.keep_besides(best_step.step)

            def save(step: int, evaluated: bool) -> None:
                progress.beat(f"checkpoint of step {step}")
                comparison.run(step, state.params)
                metadata = {
                    "identity": identity,
                    # Not part of the identity; export uses it.
                    "dtype": computed["dtype"],
                    "loader": train_data.state(first_batch + step),
                    **journal.state(),
                    **({"best": best_step.state()} if best_step.state() else {}),
                    "evaluated": evaluated,
                    "config": config_text,
                }
                with watch.cause("checkpoint"):
                    # A checkpoint names the steps in the log.
                    journal.flush()
                    saves.save(step, state, metadata)
                ledger.note(step, at_checkpoint=True)

            def loss_limit(step: int) -> tuple[jax.Array, ...]:
                if loss_spikes.policy == "off":
                    return ()
                return (run.put_scalar(journal.loss_limit(step)),)

            def evaluation_is_due(step: int) -> bool:
                return step > 0 and (
                    step % evaluation.period == 0 or step == total_steps
                )

            if restored is None:
                save(step, evaluated=False)
            elif evaluation_is_due(step) and not evaluated:
                evaluate(step)
                evaluated = True
            evaluated_at = step if evaluated else None
            if step < total_steps:
                progress.beat("compilation and the first step", limits.startup_s)
                with watch.cause("compile"):
                    run.compile(state, run.plan.batch_shapes)
                    # The first step has the limit of a step, and waits for the hosts
                    # that compile longer; on CPUs no longer than 30 s (XLA's Gloo).
                    barriers.gather("compilation", None, limits.startup_s)
            feed = stack.enter_context(
                infeed.Infeed(run.make_batch, next_batch, first_batch + total_steps)
            )
            batches = iter(feed)
            journal.start()
            comparison.clear()
            must_stop = False
            while step < total_steps and not must_stop and not best_step.is_exhausted:
                profile.before(step)
                with (
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                    # Implicit transfers would make the host wait for the device.
                    jax.transfer_guard("disallow"),
                ):
                    with watch.cause("data"):
                        _, batch = next(batches)
                    if not run.is_compiled(batch):
                        doing = f"compilation for a new length, and step {step + 1}"
                        progress.beat(doing, limits.startup_s)
                        with watch.cause("compile"), jax.transfer_guard("allow"):
                            run.compile(state, batch)
                            name = f"compilation at step {step + 1}"
                            barriers.gather(name, None, limits.startup_s)
                    state, outputs = run.step(state, batch, *loss_limit(step + 1))
                    step += 1
                    comparison.push(step, state.params)
                    # Reads the outputs of the previous step: while the host waits for
                    # step n, the device computes step n + 1.
                    with comparison.before_an_error(step, state.params):
                        journal.push(step, outputs)
                ledger.note(step)
                progress.beat(f"step {step + 1}", is_step=True)
                other_processes.step = step + 1
                must_stop = stop.should_stop(step)
                at_save = (
                    step % checkpoints.period == 0 or step == total_steps or must_stop
                )
                at_save |= saves.failed(step)
                at_eval = evaluation_is_due(step) and not must_stop
                if at_save or at_eval:
                    with comparison.before_an_error(step, state.params):
                        journal.settle()
                # Evaluate first: a checkpoint on disk implies its log on disk.
                if at_eval:
                    evaluate(step)
                    evaluated_at = step
                    at_save |= best_step.step == step or best_step.is_exhausted
                if at_save:
                    save(step, evaluated=at_eval)
            if must_stop:
                logging.warning("Stopped by a signal; step %d is being saved.", step)
            with watch.cause("checkpoint"):
                if saves.wait(step):
                    save(step, evaluated=evaluated_at == step)
                    checkpointer.wait()
            finished = step == total_steps or best_step.is_exhausted
            done = finished and evaluated_at == step
            if done and not evaluations:  # Logged by an earlier process of the run.
                evaluate(step, log=False)
            ledger.note(step, at_checkpoint=True)
        return Summary(
            step=step,
            evaluation=evaluations,
            seconds=watch.split(),
            exit_code=0 if done else stop.exit_code,
            checkpoint=directory / "checkpoints" / str(step),
            is_finished=done,
            best_step=best_step.step,
            run_seconds=ledger.account.seconds if main_process else {},
            problems=journal.problems,
        )

    return rewinding.repeat(attempt)


class _Run:
    """Objects built once from the arguments: plan of the state, functions, batches."""

    def __init__(
        self,
        objective: types.Objective,
        optimizer: types.Optimizer,
        partitioner: types.Partitioner,
        train_data: types.Loader,
        eval_data: Mapping[str, types.Loader],
        seed: int,
        num_microbatches: int,
        limits_loss: bool,
        watch: metrics.Stopwatch,
    ):
        train_state.check_vocabulary(objective, train_data)
        with watch.cause("data"):
            shapes = train_state.batch_shapes(train_data)
        self.plan = train_state.plan(objective, optimizer, partitioner, shapes)
        self.evaluator = evaluation.Evaluator(self.plan, eval_data)
        self._objective = objective
        self._step = train_step.make_train_step(
            self.plan,
            seed=seed,
            num_microbatches=num_microbatches,
            limits_loss=limits_loss,
        )
        self._limits = [jax.ShapeDtypeStruct((), np.float32)] if limits_loss else []
        self._compiled: dict[tuple, jax.stages.Compiled] = {}
        # Steps done, and FLOPs of a step, by the shapes of the batch.
        self._counts: collections.Counter[tuple] = collections.Counter()
        self._flops = {_key(shapes): objective.flops(shapes)}
        self._data = train_data
        self._rows = partitioner.host_rows(train_data.batch_size)

    def is_compiled(self, batch: Mapping[str, types.Shaped]) -> bool:
        """Whether there is a program for batches of these shapes."""
        return _key(batch) in self._compiled

    def compile(
        self, state: train_state.TrainState, batch: Mapping[str, types.Shaped]
    ) -> None:
        """Compiles the training step for batches of these shapes, unless done."""
        if self.is_compiled(batch):
            return
        abstract = self.plan.abstract_batch(batch)
        lowered = self._step.lower(state, abstract, *self._limits)
        self._compiled[_key(batch)] = lowered.compile()
        self._flops[_key(batch)] = self._objective.flops(abstract)

    def step(self, state, batch, *limits) -> tuple[train_state.TrainState, dict]:
        """The training step; see `train_step.make_train_step`."""
        key = _key(batch)
        self._counts[key] += 1
        return self._compiled[key](state, batch, *limits)

    def flops_per_step(self) -> float:
        """Model FLOPs of a step: the mean over those done, if their lengths differ."""
        counts = self._counts or {key: 1 for key in self._flops}
        total = sum(count * self._flops[key] for key, count in counts.items())
        return total / sum(counts.values())

    def put_scalar(self, value: np.float32) -> jax.Array:
        """A scalar on every device."""
        sharding = self.plan.shardings.step
        devices = sorted(sharding.addressable_devices, key=lambda device: device.id)
        # device_put with the sharding would compare the value across processes.
        copies = [jax.device_put(value, device) for device in devices]
        return jax.make_array_from_single_device_arrays((), sharding, copies)

    def make_batch(self, index: int) -> dict[str, jax.Array]:
        """The global batch `index`; this process provides its own rows."""
        rows = self._data.batch(index, rows=self._rows)
        return self.plan.partitioner.put_batch(rows, self._data.batch_size)


def _key(batch: Mapping[str, types.Shaped]) -> tuple:
    """The shapes of a batch, for which a step is compiled."""
    return tuple((name, tuple(x.shape)) for name, x in sorted(batch.items()))


def _check_arguments(batch_size: int, num_microbatches: int, total_steps: int) -> None:
    setting_types.check_range("num_microbatches", num_microbatches, 1)
    setting_types.check_range("total_steps", total_steps, 1)
    if total_steps > _MAX_STEPS:
        raise ValueError(
            f"total_steps={total_steps:,}: a run has at most {_MAX_STEPS:,} steps."
        )
    if batch_size % num_microbatches:
        raise ValueError(
            f"num_microbatches={num_microbatches} does not divide the batch of "
            f"{batch_size} rows. Choose a divisor."
        )


def _dtype_of(objective: types.Objective) -> str | None:
    """Type of the activations of the objective's model; None without a model."""
    compute = getattr(getattr(objective, "model", None), "compute", None)
    return None if compute is None else np.dtype(compute.dtype).name


def _open_writers(
    writers: Callable[[], Sequence[metrics.Writer]],
    logs: run_settings.Logs,
    model_dir: str,
) -> Sequence[metrics.Writer]:
    further = () if logs.writer is None else (logs.writer(model_dir),)
    return *writers(), *further


def _make_directory(model_dir: str) -> paths.Place:
    directory = paths.place(model_dir, "model_dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"model_dir={model_dir!r} cannot be used: {error}") from error
    return directory


def _local_file(directory: paths.Place, name: str) -> pathlib.Path:
    """A file in the model directory; of this machine if that is in a bucket.

    For what is written when nothing else works any more.
    """
    if buckets.is_bucket(directory):
        name = f"prottrans_jax.{os.getpid()}.{name}"
        return pathlib.Path(tempfile.gettempdir(), name)
    return pathlib.Path(directory / name)


def _write_config(path: paths.Place, text: str) -> None:
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
