"""Means over a held-out split: the same sums as in training, without dropout."""

from collections.abc import Mapping
import itertools
from typing import Any

from jaxtyping import PyTree

from prottrans_jax import infeed, metrics, train_state, train_step


class Evaluator:
    """Evaluates parameters on named, finite loaders.

    Args:
      plan: shapes and shardings of the state.
      partitioner: whose mesh the parameters live on.
      loaders: name to a loader with `num_batches`.
    """

    def __init__(
        self, plan: train_state.StatePlan, partitioner: Any, loaders: Mapping[str, Any]
    ):
        self._partitioner = partitioner
        self._loaders = dict(loaders)
        self._step = train_step.make_eval_step(plan, partitioner)

    def __call__(
        self, params: PyTree, max_batches: int | None = None
    ) -> dict[str, dict[str, float]]:
        """Returns, by name of the data set, the mean of each metric.

        `unigram_entropy` (nats) stands beside the losses: what a model reaches that
        has learnt nothing but how frequent each residue is.
        """
        results = {}
        for name, loader in self._loaders.items():
            sums = metrics.SumAccumulator()
            rows = self._partitioner.host_rows(loader.batch_size)

            def make(index, loader=loader, rows=rows):
                local = loader.batch(index, rows=rows)
                return self._partitioner.put_batch(local, loader.batch_size)

            with infeed.Infeed(make, 0, loader.num_batches) as feed:
                for _, batch in itertools.islice(feed, max_batches):
                    sums.add(self._step(params, batch))
            scalars = metrics.with_perplexity(sums.means())
            scalars["unigram_entropy"] = loader.unigram_entropy
            results[name] = scalars
        return results
