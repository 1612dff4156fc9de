"""Mean metrics over a held-out split: as in training, without dropout."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import itertools
import os
import pathlib
import tempfile

from absl import logging
from etils import epath
import jax
from jaxtyping import PyTree

from prottrans_jax import types
from prottrans_jax.checkpoints import manifests, stored_steps
from prottrans_jax.distributed import (
    agreement,
    barriers,
    peers,
    stop_signals,
    watchdog,
)
from prottrans_jax.files import paths
from prottrans_jax.training import (
    infeed,
    metrics,
    resuming,
    run_settings,
    train_state,
    train_step,
)

# Of a wait for another process, which may read from slow storage.
_WAIT_S = 1200.0


class Evaluator:
    """Evaluates parameters on named, finite loaders.

    Args:
      plan: shapes and shardings of the state.
      loaders: name to a loader with `num_batches`.

    Raises:
      ValueError: a loader's vocabulary is larger than the model's embedding table.
    """

    def __init__(
        self, plan: train_state.StatePlan, loaders: Mapping[str, types.Loader]
    ):
        for loader in loaders.values():
            train_state.check_vocabulary(plan.objective, loader)
        self._plan = plan
        self._loaders = dict(loaders)
        self._step = train_step.make_eval_step(plan)

    def __call__(
        self,
        params: PyTree,
        max_batches: int | None = None,
        after_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, float]]:
        """Returns the mean of each metric, by name of the data set.

        Each data set begins with empty memories. Where an objective has memories, they
        pass from batch to batch as in training. With tokens as targets the results
        include `unigram_entropy` (nats): the loss of a model that has learnt only how
        frequent each residue is.

        Args:
          params: model parameters.
          max_batches: of each loader; None takes the whole split.
          after_batch: called after each batch, e.g. to reset a watchdog.
        """
        results = {}
        partitioner = self._plan.partitioner
        for name, loader in self._loaders.items():
            sums = metrics.SumAccumulator()
            rows = partitioner.host_rows(loader.batch_size)

            def make(index, loader=loader, rows=rows):
                local = loader.batch(index, rows=rows)
                return partitioner.put_batch(local, loader.batch_size)

            carry = train_step.initial_carry(self._plan, loader.batch_size)
            with infeed.Infeed(make, 0, loader.num_batches) as feed:
                for _, batch in itertools.islice(feed, max_batches):
                    batch_sums, carry = self._step(params, batch, carry)
                    sums.add(batch_sums)
                    stop_signals.check()
                    after_batch()
            scalars = sums.means()
            if isinstance(loader, types.TokenLoader):
                scalars = metrics.with_perplexity(scalars)
                scalars["unigram_entropy"] = loader.unigram_entropy
            results[name] = scalars
        return results


def evaluate_checkpoints(
    *,
    model_dir: str | os.PathLike[str],
    objective: types.Objective,
    optimizer: types.Optimizer,
    partitioner: types.Partitioner,
    eval_data: Mapping[str, types.Loader],
    step: str = "latest",
    max_batches: int | None = None,
    limits: run_settings.Limits = run_settings.Limits(),
    config_text: str = "",
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """Evaluates steps of a finished or running run; writes nothing.

    A step that the run deletes meanwhile is skipped with a warning; "latest" takes the
    newer one instead. Of several processes, each computes its rows and yields the same.
    They watch each other: one that is lost or hangs ends the others.

    Args:
      model_dir: directory of the run.
      objective: as in training.
      optimizer: as in training.
      partitioner: may differ from training's; a checkpoint restores onto any mesh.
      eval_data: name to a finite loader.
      step: a number, "latest" or "all".
      max_batches: of each loader; None takes the whole split.
      limits: of waiting, for several processes.
      config_text: resolved gin configuration, compared between processes.

    Yields:
      (step, results by name of the data set), in increasing order of steps.

    Raises:
      ValueError: no such step.
      manifests.CheckpointError: steps are damaged; raised after all sound ones are
        evaluated.
      manifests.GoneError: the run deleted all chosen steps meanwhile.
      agreement.DisagreementError: hosts differ in settings, data or packages.
    """
    directory = stored_steps.absolute(
        paths.place(model_dir, "model_dir") / "checkpoints"
    )
    resuming.check_hosts_agree(
        {
            **agreement.settings_of(config_text),
            "step": step,
            "max_batches": max_batches,
        },
        eval_data,
    )
    steps = _steps(directory)
    chosen = {"latest": steps[-1:], "all": steps}.get(step)
    if chosen is None:
        chosen = [number for number in steps if str(number) == step]
    if not chosen:
        raise ValueError(
            f"{directory}: no step {step!r}. There are: {steps or 'none'}."
        )
    loader = next(iter(eval_data.values()))
    plan = train_state.plan(
        objective, optimizer, partitioner, train_state.batch_shapes(loader)
    )
    evaluator = Evaluator(plan, eval_data)
    damaged: list[str] = []
    gone: list[int] = []
    num_evaluated = 0
    with _watched(limits) as progress:
        while chosen:
            number = chosen.pop(0)
            progress(number, "reading", None)
            try:
                params = _load_params(directory, plan.abstract.params, number)
            except manifests.GoneError:
                logging.warning(
                    "Step %d was deleted by the run and is skipped.", number
                )
                gone.append(number)
                if step == "latest":
                    chosen = _steps(directory)[-1:]
                continue
            except manifests.CheckpointError as error:
                damaged.append(str(error).replace("\n", " "))
                continue
            # The first one compiles.
            progress(number, "evaluation", None if num_evaluated else limits.startup_s)
            with partitioner.scope():
                results = evaluator(
                    params,
                    max_batches,
                    after_batch=functools.partial(progress, number, "evaluation", None),
                )
            num_evaluated += 1
            yield number, results
    if gone and not num_evaluated and not damaged:
        raise manifests.GoneError(
            f"{directory}: no step was evaluated; the run deleted "
            f"{', '.join(map(str, gone))} meanwhile. Choose the step 'latest', which "
            "takes the newer one."
        )
    if damaged:
        raise manifests.CheckpointError("; ".join(damaged))


def _steps(directory: epath.Path) -> list[int]:
    """Committed steps, as process 0 sees them."""
    return barriers.from_process_zero(
        "evaluation/steps", lambda: manifests.committed(directory), _WAIT_S
    )


def _load_params(directory: epath.Path, abstract_params: PyTree, step: int) -> PyTree:
    """Reads a step on all processes; if one of them cannot, all raise the same error.

    Raises:
      manifests.GoneError: the run deleted the step meanwhile.
      manifests.CheckpointError: the step is damaged or cannot be read.
    """
    params, error = None, None
    try:
        params = stored_steps.load_params(directory, abstract_params, step)
    except (manifests.CheckpointError, barriers.ProcessZeroError) as failure:
        error = failure
    problem = None if error is None else str(error)
    is_gone = isinstance(error, manifests.GoneError)
    outcomes = barriers.gather(f"step {step}", [problem, is_gone], _WAIT_S)
    problems = [problem for problem, _ in outcomes if problem is not None]
    if any(is_gone for _, is_gone in outcomes):
        raise manifests.GoneError(problems[0]) from error
    if problems:
        raise manifests.CheckpointError(problems[0]) from error
    return params


@contextlib.contextmanager
def _watched(
    limits: run_settings.Limits,
) -> Iterator[Callable[[int, str, float | None], None]]:
    """Context that ends this process if another one is lost or hangs.

    Yields:
      Function that reports progress: the step, what begins, and its limit in seconds
      if not `step_s`. It does nothing if there is no other process.
    """
    if jax.process_count() == 1:
        yield lambda step, doing, limit_s: None
        return

    def file(name: str) -> pathlib.Path:
        # The model directory belongs to a run, which may have such files of its own.
        return pathlib.Path(
            tempfile.gettempdir(), f"prottrans_jax.{os.getpid()}.{name}.txt"
        )

    other_processes = peers.watch(file("lost_host"))
    with (
        watchdog.Watchdog(
            limits.startup_s,
            limits.step_s,
            stacks=file("stacks"),
            who_hangs=other_processes.report_hang,
        ) as dog,
        other_processes,
    ):

        def progress(step: int, doing: str, limit_s: float | None) -> None:
            other_processes.step = step
            dog.beat(f"{doing} of step {step}", limit_s)

        yield progress
