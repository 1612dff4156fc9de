"""The metric of a task for a trained head, on batches of labelled proteins."""

from collections.abc import Sequence

import jax
import numpy as np

from prottrans_jax import types
from prottrans_jax.distributed import stop_signals
from prottrans_jax.downstream import (
    head_objective,
    intervals,
    labelled,
    labelled_rows,
    outcomes,
)


def score(
    objective: head_objective.HeadObjective,
    params: types.Params,
    rows: labelled_rows.LabelledRows,
    task: labelled.Task,
) -> dict[str, intervals.Interval]:
    """The task's main metric, and for classes the accuracy, with 95 % intervals.

    Args:
      objective: Of the head.
      params: Its parameters.
      rows: Batches of one epoch.
      task: The task.
    """
    labels: list[np.ndarray] = []
    predictions: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    predict = jax.jit(
        lambda params, batch: objective.outputs(
            params, batch, jax.random.key(0), train=False
        )
    )
    for index in range(rows.num_batches or 0):
        batch = rows.batch(index)
        lengths = batch["lengths"]
        outputs = np.asarray(predict(params, batch))
        chosen = outputs[..., 0] if task.is_regression else outputs.argmax(-1)
        stop_signals.check()
        for row, protein in enumerate(rows.members(index)):
            cut = slice(lengths[row]) if task.level == "residue" else ()
            labels.append(protein.labels[cut])
            counts.append(protein.counts[cut])
            predictions.append(chosen[row][cut])
    paired = outcomes.pair(labels, predictions, counts, num_classes=len(task.classes))
    return intervals.evaluate(paired, _metrics(task))


def _metrics(task: labelled.Task) -> Sequence[str]:
    return list(dict.fromkeys([task.metric, *(["accuracy"] if task.classes else [])]))
