"""Mean metrics over a held-out split: as in training, without dropout."""

from collections.abc import Callable, Iterator, Mapping
import itertools
import os

from absl import logging
from jaxtyping import PyTree

from prottrans_jax import types
from prottrans_jax.checkpoints import checkpointing, manifests, stored_steps
from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import paths
from prottrans_jax.training import infeed, metrics, train_state, train_step


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
        pass from batch to batch as in training. The results include `unigram_entropy`
        (nats): the loss of a model that has learnt only how frequent each residue is.

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
            scalars = metrics.with_perplexity(sums.means())
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
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """Evaluates steps of a finished or running run; writes nothing.

    A step that the run deletes meanwhile is skipped with a warning; "latest" takes the
    newer one instead.

    Args:
      model_dir: directory of the run.
      objective: as in training.
      optimizer: as in training.
      partitioner: may differ from training's; a checkpoint restores onto any mesh.
      eval_data: name to a finite loader.
      step: a number, "latest" or "all".
      max_batches: of each loader; None takes the whole split.

    Yields:
      (step, results by name of the data set), in increasing order of steps.

    Raises:
      ValueError: no such step.
      manifests.CheckpointError: steps are damaged; raised after all sound ones are
        evaluated.
      manifests.GoneError: the run deleted all chosen steps meanwhile.
    """
    directory = paths.place(model_dir, "model_dir") / "checkpoints"
    reader = checkpointing.Checkpointer(directory, read_only=True)
    steps = reader.steps()
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
    while chosen:
        number = chosen.pop(0)
        try:
            params = stored_steps.load_params(
                directory, plan.abstract.params, step=number
            )
        except manifests.GoneError:
            logging.warning("Step %d was deleted by the run and is skipped.", number)
            gone.append(number)
            if step == "latest":
                chosen = reader.steps()[-1:]
            continue
        except manifests.CheckpointError as error:
            damaged.append(str(error).replace("\n", " "))
            continue
        num_evaluated += 1
        with partitioner.scope():
            yield number, evaluator(params, max_batches)
    if gone and not num_evaluated and not damaged:
        raise manifests.GoneError(
            f"{directory}: no step was evaluated; the run deleted "
            f"{', '.join(map(str, gone))} meanwhile. Choose the step 'latest', which "
            "takes the newer one."
        )
    if damaged:
        raise manifests.CheckpointError("; ".join(damaged))
