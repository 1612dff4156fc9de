"""Trains a head on labelled proteins, with the trainer and one call.

read           labelled proteins of one or several files
with_splits    which of them train, validate and test
finetune       vectors once, then the trainer; writes RUN/head
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from absl import logging
from flax import linen as nn
import jax

from prottrans_jax import partitioning, types
from prottrans_jax.checkpoints import stored_steps
from prottrans_jax.config import setting_types
from prottrans_jax.downstream import (
    head_folders,
    head_objective,
    head_scores,
    heads,
    intervals,
    labelled,
    labelled_rows,
    prediction_metrics,
    readers,
    stored_vectors,
)
from prottrans_jax.encoders import frozen_models, loading
from prottrans_jax.files import digests, paths
from prottrans_jax.interop import huggingface
from prottrans_jax.optimizers import algorithms
from prottrans_jax.proteins import plurals
from prottrans_jax.training import run_settings, train_state, trainer

TRAIN, VALIDATION = "train", "validation"
_TRAIN_NAMES = ("train", "training", "all")
_VALIDATION_NAMES = ("val", "valid", "validation", "dev")
# Of the training proteins, where files name no validation split.
_HELD_OUT = 0.1
_VECTORS = "vectors.npz"


def read(
    files: str | os.PathLike | Sequence[str | os.PathLike],
    task: str | None = None,
    *,
    unknown: str = "drop",
    mask: str = "resolved",
) -> labelled.LabelledSet:
    """Labelled proteins of several files of one task, as one set.

    Args:
      files: A file or several; see `readers.read`.
      task: Name of a published task; None: of the labels in the first file.
      unknown: As for `readers.read`.
      mask: As for `readers.read`.

    Raises:
      ValueError: A file cannot be used, or files differ in their classes.
    """
    several = [files] if isinstance(files, str | os.PathLike) else list(files)
    sets = [
        readers.read(file, task=task, unknown=unknown, mask=mask) for file in several
    ]
    first = sets[0].task
    for file, other in zip(several, sets, strict=True):
        if other.task.classes != first.classes or other.task.level != first.level:
            raise ValueError(
                f"{file}: its labels are {other.task.classes or 'numbers'}, those of "
                f"{several[0]} are {first.classes or 'numbers'}. Name the task."
            )
    return labelled.LabelledSet(
        first,
        [protein for one in sets for protein in one.proteins],
        [note for one in sets for note in one.notes],
    )


def with_splits(data: labelled.LabelledSet) -> dict[str, labelled.LabelledSet]:
    """The splits for training, validation, and tests under their own names.

    Without a validation split a tenth of the training proteins is held out, chosen by a
    hash of the residues: equal sequences stay together, and the choice is the same in
    every run. Related sequences may still be on both sides: split by identity where the
    metric is to hold for new families.

    Raises:
      ValueError: There is no training split; lists the splits.
    """
    names = list(dict.fromkeys(protein.split for protein in data.proteins))
    train = [name for name in names if name.lower() in _TRAIN_NAMES]
    if not train:
        raise ValueError(
            f"{data.task.name}: no protein is of the split 'train'; the splits are "
            f"{', '.join(map(repr, names)) or 'none'}."
        )
    validation = [name for name in names if name.lower() in _VALIDATION_NAMES]
    splits = {TRAIN: data.split(*train)}
    if validation:
        splits[VALIDATION] = data.split(*validation)
    else:
        kept: list[labelled.LabelledProtein] = []
        held_out: list[labelled.LabelledProtein] = []
        for protein in splits[TRAIN].proteins:
            draw = int(digests.of_bytes(protein.residues.encode())[:8], 16) / 16**8
            (held_out if draw < _HELD_OUT else kept).append(protein)
        if not kept or not held_out:
            proteins = plurals.count(len(splits[TRAIN].proteins), "training protein")
            raise ValueError(
                f"{data.task.name}: no protein is of the split 'validation', and "
                f"{proteins} cannot be divided into nine tenths and one tenth. Put "
                "some into a split named 'validation'."
            )
        splits[TRAIN] = dataclasses.replace(data, proteins=kept)
        splits[VALIDATION] = dataclasses.replace(data, proteins=held_out)
    for name in names:
        if name not in (*train, *validation):
            splits[name] = data.split(name)
    return splits


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished or stopped run.

    Attributes:
      summary: Of the trainer.
      scores: Metrics of the head by split; empty if the run was stopped.
      head: The head with the best validation loss; None: the run was stopped.
      folder: Folder of the head.
    """

    summary: trainer.Summary
    scores: Mapping[str, Mapping[str, intervals.Interval]]
    head: head_folders.Head | None
    folder: paths.Place


def finetune(
    *,
    model_dir: str,
    data: labelled.LabelledSet,
    model: str,
    encoder: frozen_models.Encoder | None = None,
    head: nn.Module | str,
    optimizer: types.Optimizer | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    patience: int | None = None,
    best_metric: str = "loss",
    seed: int = 42,
    max_length: int | None = None,
    dtype: str | None = None,
    download: bool = False,
    vectors: str | None = None,
    num_devices: int | None = None,
    config_text: str = "",
    on_plan: Callable[[Any], None] | None = None,
    on_progress: Callable[[Any], None] | None = None,
) -> Result:
    """Trains a head on the vectors of a frozen encoder; resumes a stopped run.

    Args:
      model_dir: Folder of the run; the head is written to its folder `head`.
      data: Labelled proteins with their splits; see `with_splits`.
      model: The encoder; as `encoders.loading.load_encoder`.
      encoder: The encoder, if it is loaded already.
      head: A head, or its kind: a key of `heads.HEADS`.
      optimizer: None: Adam with learning rate 0.001, as in biotrainer.
      epochs: Passes over the training proteins.
      batch_size: Proteins of a batch.
      patience: Epochs without a better validation metric after which training ends.
      best_metric: "loss", or "accuracy" for classes: chooses the best epoch.
      seed: Of the initial parameters, the order of the proteins and dropout.
      max_length: Longer proteins and their labels are truncated to this number of
        residues.
      dtype: Type in which the encoder computes.
      download: Whether to fetch a model that is not in the local cache.
      vectors: File of the vectors, which several runs on the same proteins can share;
        None: in `model_dir`. It is on this machine: name it if `model_dir` is in a
        bucket.
      num_devices: Devices to train on; None: all.
      config_text: Resolved gin configuration, stored in every checkpoint.
      on_plan: Called before vectors are computed; see `embed.job.embed_fasta`.
      on_progress: Called while they are.

    Raises:
      ValueError: A setting or the data cannot be used; names it.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"this run has {jax.process_count()} processes; a head is trained in one, "
            "on all its devices."
        )
    task, splits = data.task, with_splits(data)
    if isinstance(head, str):
        head = heads.make(head, task.level, task.num_outputs)
    _check_head(head, task)
    setting_types.check_range("epochs", epochs, 1)
    encoder = encoder or loading.load_encoder(model, dtype=dtype, download=download)
    stored, _ = stored_vectors.compute(
        encoder,
        (protein.residues for protein in data.proteins),
        vectors or os.path.join(model_dir, _VECTORS),
        pooled=heads.pools_first(head),
        max_length=max_length,
        on_plan=on_plan,
        on_progress=on_progress,
    )
    identity = f"{encoder.fingerprint} {encoder.dtype} max_length={max_length}"
    inputs = labelled_rows.VectorInputs(stored, identity)
    loaders = {
        name: labelled_rows.LabelledRows(
            split, inputs, batch_size=batch_size, seed=seed, is_training=name == TRAIN
        )
        for name, split in splits.items()
    }
    train_data = loaders.pop(TRAIN)
    objective = head_objective.HeadObjective(
        head,
        head_objective.FrozenVectors(encoder.d_model, encoder.fingerprint),
        task.is_regression,
    )
    optimizer = optimizer or algorithms.AdamW(
        learning_rate=1e-3, eps=1e-8, weight_decay=0.0
    )
    partitioner = partitioning.Partitioner(num_devices=num_devices)
    period = train_data.batches_per_epoch
    summary = trainer.train(
        model_dir=model_dir,
        objective=objective,
        train_data=train_data,
        eval_data={VALIDATION: loaders[VALIDATION]},
        optimizer=optimizer,
        partitioner=partitioner,
        total_steps=epochs * period,
        seed=seed,
        checkpoints=run_settings.Checkpoints(period=period, keep=1),
        evaluation=run_settings.Evaluation(period=period),
        best=run_settings.Best(
            metric=f"{VALIDATION}/{best_metric}",
            mode="max" if best_metric == "accuracy" else "min",
            patience=patience,
        ),
        logs=run_settings.Logs(period=min(period, 100)),
        config_text=config_text,
    )
    directory = paths.place(model_dir, "model_dir")
    folder = directory / head_folders.FOLDER
    if not summary.is_finished:
        return Result(summary, {}, None, folder)
    plan = train_state.plan(
        objective, optimizer, partitioner, train_state.batch_shapes(train_data)
    )
    params = stored_steps.load_params(
        directory, plan.abstract.params, step=summary.best_step
    )
    # The last evaluation of training may be of another step.
    scores = {
        name: head_scores.score(objective, params, rows, task)
        for name, rows in loaders.items()
    }
    trained = head_folders.Head(
        head,
        jax.device_get(params["head"]),
        (task,),
        head_folders.EncoderId(
            encoder.name,
            encoder.fingerprint,
            encoder.d_model,
            encoder.dtype,
            encoder.prefix_piece,
            model if model in huggingface.NAMES else os.path.abspath(model),
        ),
        about={
            "step": summary.best_step,
            "steps_per_epoch": period,
            "scores": _as_numbers(scores),
        },
    )
    head_folders.save(folder, trained)
    logging.info("The head of step %d is in %s.", summary.best_step, folder)
    return Result(summary, scores, trained, folder)


def summary_lines(result: Result) -> Iterator[str]:
    """What the metrics of the best head are, a line each."""
    assert result.head is not None
    period, best = result.head.about["steps_per_epoch"], result.summary.best_step
    epochs = result.summary.step // period
    yield f"Epoch {best // period} of {epochs} is the best on the validation data:"
    for name, found in result.scores.items():
        for metric, interval in found.items():
            ends = f"95 % interval {interval.low:.3f} to {interval.high:.3f}"
            counts = prediction_metrics.get(metric).counts
            note = f" ({interval.note})" if interval.note else ""
            yield (
                f"  {name}: {metric} {interval.value:.3f}, {ends}, "
                f"{plurals.count(interval.num_proteins, 'protein')}: {counts}{note}"
            )


def _as_numbers(
    scores: Mapping[str, Mapping[str, intervals.Interval]],
) -> dict[str, dict[str, list[float | None]]]:
    """[value, low, high] of each metric; JSON has no NaN."""
    return {
        name: {
            metric: [
                None if math.isnan(x) else x
                for x in (interval.value, interval.low, interval.high)
            ]
            for metric, interval in found.items()
        }
        for name, found in scores.items()
    }


def _check_head(head: nn.Module, task: labelled.Task) -> None:
    """Raises ValueError unless a head fits the task."""
    level, outputs = head.level, head.outputs  # type: ignore[attr-defined]
    if level != task.level or outputs != task.num_outputs:
        raise ValueError(
            f"{type(head).__name__} has {outputs} outputs for each {level}; "
            f"{task.name} needs {task.num_outputs} for each {task.level}."
        )
