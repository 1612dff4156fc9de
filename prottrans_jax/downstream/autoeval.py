"""Evaluates an encoder: heads are trained on published data and tested with intervals.

A run is a folder:

    vectors/     vectors of the proteins, computed once for each encoder and data set
    heads/       the head of each evaluation and encoder, for `prottrans predict`
    results/     a JSON file for each evaluation and encoder that is done
    results.json, results.md      all of them, beside the published figures

The same call continues an interrupted run: what is in `results` is not computed again.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import math
from typing import Any

import jax
from jaxtyping import Float
import numpy as np
import optax

from prottrans_jax.downstream import (
    evaluation_data,
    evaluation_sets,
    head_fitting,
    head_folders,
    head_objective,
    heads,
    intervals,
    labelled,
    labelled_rows,
    outcomes,
    stored_vectors,
)
from prottrans_jax.encoders import frozen_models
from prottrans_jax.files import digests, json_text, paths, writing

RESULTS, REPORT = "results.json", "results.md"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How heads are trained and tested; the defaults are those of the PBC.

    They are settings of AutoEval in biotrainer 2.1.1. Those of the ProtTrans paper were
    not published.

    Attributes:
      epochs: Passes over the training proteins.
      learning_rate: Of Adam.
      batch_size: Proteins of a batch.
      patience: Epochs without a better validation loss after which training ends.
      seed: Of initial parameters, order and choice of proteins.
      max_residues: Longer proteins are left out; None: no limit.
      max_proteins: Training and validation proteins together, drawn at random, nine
        tenths for training; None: all. For a quick look.
      max_test_proteins: Proteins of each test set, drawn at random; None: all.
      resamples: Resamples of the proteins for the intervals.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 64
    patience: int = 5
    seed: int = 42
    max_residues: int | None = None
    max_proteins: int | None = None
    max_test_proteins: int | None = None
    resamples: int = 1000

    @property
    def limits(self) -> evaluation_data.Limits:
        """Which proteins are taken."""
        return evaluation_data.Limits(
            self.max_residues, self.max_proteins, self.max_test_proteins, self.seed
        )

    def __post_init__(self):
        for name in ("epochs", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: it must be at least 1."
                )


# For a model in training: minutes on two CPU cores.
DEVELOPMENT = Settings(
    epochs=6, max_residues=512, max_proteins=600, max_test_proteins=200
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Folders and settings of a run, and functions that it calls.

    Attributes:
      folder: Folder of the run, on this machine.
      data: Folder with the labelled files; see `evaluation_sets.find`.
      settings: Settings of training and tests.
      tell: Called with a line for each thing that is begun or done.
      check: Called after every step of training a head.
    """

    folder: paths.Place
    data: paths.Place
    settings: Settings = Settings()
    tell: Callable[[str], None] = lambda line: None
    check: Callable[[], None] = lambda: None


def evaluate(
    run: Run,
    encoders: Sequence[frozen_models.Encoder],
    evaluations: Sequence[evaluation_sets.Evaluation],
) -> list[dict[str, Any]]:
    """Evaluates encoders; the first is the one in question, others are controls.

    Args:
      run: Folders and settings.
      encoders: Encoders; their vectors are compared on the same proteins.
      evaluations: From `evaluation_sets.choose`.

    Returns:
      A result for each evaluation and encoder, plain JSON, in that order: metrics of
      each test set with intervals, and for controls the difference to the first
      encoder with its p-value. An evaluation without data is a result with "missing".

    Raises:
      ValueError: A file or a setting cannot be used; names it.
      FileNotFoundError: The data folder does not exist.
    """
    if not run.data.is_dir():
        raise FileNotFoundError(
            f"{run.data}: there is no such folder of labelled data."
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for evaluation in evaluations:
        data = evaluation_data.read(evaluation, run.data, run.settings.limits)
        if isinstance(data, str):
            run.tell(f"{evaluation.name}: left out. {data}")
            results.append({"evaluation": evaluation.name, "missing": data})
            continue
        tested = [_evaluate_one(run, encoder, evaluation, data) for encoder in encoders]
        for result, predictions in tested:
            _compare(result, predictions, tested[0], data, run.settings)
            results.append(result)
    content = {"settings": dataclasses.asdict(run.settings), "results": results}
    writing.write_synced(run.folder / RESULTS, _json(content))
    return results


def _evaluate_one(
    run: Run,
    encoder: frozen_models.Encoder,
    evaluation: evaluation_sets.Evaluation,
    data: evaluation_data.Data,
) -> tuple[dict[str, Any], dict[str, outcomes.Outcomes]]:
    """The result of one encoder, and its outcomes by test set."""
    key = _key(encoder, evaluation, data, run.settings)
    file = run.folder / "results" / f"{evaluation.name}-{key}.json"
    tests = {
        name: split
        for name, split in data.splits.items()
        if name in evaluation.tests
        or name not in (evaluation_data.TRAIN, evaluation_data.VALIDATION)
    }
    head = run.folder / "heads" / f"{evaluation.name}-{key}"
    stored = _vectors(run, encoder, evaluation, data)
    if file.is_file():
        run.tell(f"{evaluation.name}, {encoder.name}: done before.")
        result = json_text.read_object(file)
        trained = head_folders.load(head)
    else:
        run.tell(f"{evaluation.name}, {encoder.name}: training the head.")
        trained = _train(run, encoder, evaluation, data, stored)
        head_folders.save(head, trained)
        result = {}
    inputs = labelled_rows.VectorInputs(stored, encoder.fingerprint)
    predicted = {
        name: outcomes.of_set(split, predict(trained, inputs, split))
        for name, split in tests.items()
    }
    if not result:
        result = _result(encoder, evaluation, data, predicted, run.settings, trained)
        file.parent.mkdir(parents=True, exist_ok=True)
        writing.write_synced(file, _json(result))
    return result, predicted


def _key(encoder, evaluation, data: evaluation_data.Data, settings: Settings) -> str:
    """Names all that a result depends on, shortened."""
    digest = digests.Sha256()
    fields = dataclasses.asdict(settings)
    digest.update(f"{encoder.fingerprint} {encoder.dtype} {evaluation.head}".encode())
    digest.update(json.dumps(fields, sort_keys=True).encode())
    digest.update(f"{evaluation.task} {evaluation.metrics}".encode())
    for name, split in data.splits.items():
        digest.update(f"{name} {len(split.proteins)}".encode())
        for protein in split.proteins:
            digest.update(f"{protein.id} {protein.residues}".encode())
            digest.update(np.asarray(protein.labels).tobytes())
            digest.update(np.asarray(protein.counts).tobytes())
    return digest.hexdigest()[:12]


def _vectors(
    run: Run,
    encoder: frozen_models.Encoder,
    evaluation: evaluation_sets.Evaluation,
    data: evaluation_data.Data,
) -> stored_vectors.StoredVectors:
    """Vectors of all proteins; evaluations of the same proteins share them."""
    sequences = sorted({p.residues for s in data.splits.values() for p in s.proteins})
    digest = digests.of_bytes("\n".join(sequences).encode())[:12]
    pooled = next(iter(data.splits.values())).task.level == "protein"
    kind = "protein" if pooled else "residue"
    name = f"{kind}-{encoder.fingerprint[:12]}-{encoder.dtype}-{digest}.npz"
    run.tell(
        f"{evaluation.name}, {encoder.name}: vectors of {len(sequences):,} proteins."
    )
    stored, _ = stored_vectors.compute(
        encoder, sequences, run.folder / "vectors" / name, pooled=pooled
    )
    return stored


def _train(
    run: Run, encoder, evaluation, data: evaluation_data.Data, stored
) -> head_folders.Head:
    settings = run.settings
    task = data.splits[evaluation_data.TRAIN].task
    module = heads.make(evaluation.head, task.level, task.num_outputs)
    inputs = labelled_rows.VectorInputs(stored, encoder.fingerprint)
    train, validation = (
        labelled_rows.LabelledRows(
            data.splits[name],
            inputs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            is_training=name == evaluation_data.TRAIN,
        )
        for name in (evaluation_data.TRAIN, evaluation_data.VALIDATION)
    )
    fitted = head_fitting.fit(
        head_objective.HeadObjective(
            module,
            head_objective.FrozenVectors(encoder.d_model, encoder.fingerprint),
            task.is_regression,
        ),
        train,
        validation,
        optax.adam(settings.learning_rate),
        epochs=settings.epochs,
        patience=settings.patience,
        seed=settings.seed,
        check=run.check,
    )
    return head_folders.Head(
        module,
        fitted.params["head"],
        (task,),
        head_folders.EncoderId(
            encoder.name,
            encoder.fingerprint,
            encoder.d_model,
            encoder.dtype,
            encoder.prefix_piece,
        ),
        about={
            "validation_losses": list(fitted.losses),
            "best_epoch": fitted.best_epoch + 1,
        },
    )


def predict(
    head: head_folders.Head,
    inputs: labelled_rows.VectorInputs,
    proteins: labelled.LabelledSet,
) -> list[np.ndarray]:
    """Class with the highest probability, or number, in the order of the proteins.

    Args:
      head: The head; its only task is that of the proteins.
      inputs: Vectors of the proteins.
      proteins: Proteins.

    Returns:
      For tasks of residues [length], of proteins [].
    """
    rows = labelled_rows.LabelledRows(
        proteins, inputs, batch_size=32, is_training=False
    )
    apply = jax.jit(head.__call__)
    found: dict[int, np.ndarray] = {}
    for index in range(rows.batches_per_epoch):
        batch = rows.batch(index)
        vectors, lengths = batch["vectors"], batch["lengths"]
        mask = np.arange(vectors.shape[1]) < lengths[:, None]
        outputs = np.asarray(apply(vectors, mask))
        for row, protein in enumerate(rows.members(index)):
            values = outputs[row]
            if proteins.task.level == "residue":
                values = values[: len(protein.residues)]
            found[id(protein)] = _decided(values, proteins.task)
    return [found[id(protein)] for protein in proteins.proteins]


def _decided(
    values: Float[np.ndarray, "*length outputs"], task: labelled.Task
) -> np.ndarray:
    if task.is_regression:
        return np.asarray(values[..., 0], np.float64)
    return np.asarray(values.argmax(-1))


def _result(
    encoder,
    evaluation,
    data: evaluation_data.Data,
    predicted,
    settings: Settings,
    trained,
):
    tests = []
    for name, outcome in predicted.items():
        found = intervals.evaluate(
            outcome, evaluation.metrics, resamples=settings.resamples
        )
        metrics = {
            metric: _plain(interval)
            | ({"note": interval.note} if interval.note else {})
            for metric, interval in found.items()
        }
        tests.append(
            {
                "name": name,
                "proteins": next(iter(found.values())).num_proteins,
                "items": len(outcome.labels),
                "metrics": metrics,
            }
        )
    return {
        "evaluation": evaluation.name,
        "title": evaluation.title,
        "description": evaluation.description,
        "head": evaluation.head,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "train_proteins": len(data.splits[evaluation_data.TRAIN].proteins),
        "validation_proteins": len(data.splits[evaluation_data.VALIDATION].proteins),
        "about_head": dict(trained.about),
        "notes": list(data.notes),
        "tests": tests,
    }


def _compare(
    result, predicted, first, data: evaluation_data.Data, settings: Settings
) -> None:
    """Adds the difference of the first encoder to this one, on the same proteins."""
    if predicted is first[1]:
        return
    for test in result["tests"]:
        metric = next(iter(test["metrics"]))
        difference = intervals.difference(
            predicted[test["name"]],
            first[1][test["name"]],
            metric,
            resamples=settings.resamples,
        )
        p = None if math.isnan(difference.p) else difference.p
        test["first_minus_this"] = {"metric": metric, **_plain(difference), "p": p}


def _plain(interval: intervals.Interval) -> dict[str, Any]:
    """Value and ends; None for NaN, which JSON does not have."""
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {k: None if math.isnan(v) else v for k, v in values.items()}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
