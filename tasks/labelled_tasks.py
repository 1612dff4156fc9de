"""Published tasks with labels: labels_secondary_structure_3, labels_location and so on.

`labels_TASK` reads the file TASK.csv, .tsv, .jsonl or .fasta, plain or compressed, or
FLIP's folder TASK, in the folder `labels` of PROTTRANS_DATA_DIR. Needs no network. An
example is a protein:

  inputs    ids of its residues in ProtT5's vocabulary, with </s>, [length + 1]
  targets   class + 1 of each residue, or of the protein, 0 where the label does not
            count, [length] or [1]; numbers for a regression
  weights   1 where the label counts, else 0, of the shape of targets

Split "validation" is val of the file; "test" is every split that is neither train nor
val. A task of `published_tasks.TASKS` is registered without a line here.
"""

from collections.abc import Iterator
import functools
import os
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.data.records import corpora
from prottrans_jax.data.seqio import byte_vocabulary
from prottrans_jax.downstream import labelled, published_tasks, readers
from prottrans_jax.files import paths
from prottrans_jax.proteins import vocabulary

SPLITS = ("train", "validation", "test")
FOLDER = "labels"
_SPLIT_OF_NAME = {"train": "train", "val": "validation", "validation": "validation"}


def find(name: str) -> paths.Place:
    """The file with the labels of a task.

    Raises:
      ValueError: PROTTRANS_DATA_DIR is not set, or there is no such file, or several.
    """
    folder = os.environ.get(corpora.DATA_DIR)
    if not folder:
        raise ValueError(
            f"the labels of {name} are read from {FOLDER}/{name}.csv (or .tsv, .jsonl, "
            f".fasta) in the folder {corpora.DATA_DIR}, which is not set."
        )
    base = paths.place(folder, corpora.DATA_DIR) / FOLDER
    files = sorted(base.iterdir()) if base.is_dir() else []
    named = [path for path in files if path.name.partition(".")[0] == name]
    if len(named) != 1:
        shown = ", ".join(path.name for path in named) or "no file"
        raise ValueError(f"{base}: {shown} for {name}; one is needed.")
    return named[0]


def _dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, name: str
) -> tf.data.Dataset:
    proteins = readers.read(find(name), task=name).proteins
    chosen = [p for p in proteins if _SPLIT_OF_NAME.get(p.split, "test") == split]
    if shuffle_files:
        np.random.default_rng(seed).shuffle(chosen)
    number = published_tasks.get(name).task.is_regression

    def examples() -> Iterator[dict[str, Any]]:
        for protein in chosen:
            yield {
                "id": protein.id,
                "sequence": protein.residues,
                "targets": _targets(protein),
                "weights": protein.counts.reshape(-1).astype(np.float32),
            }

    targets = tf.float32 if number else tf.int32
    return tf.data.Dataset.from_generator(
        examples,
        output_signature={
            "id": tf.TensorSpec([], tf.string),
            "sequence": tf.TensorSpec([], tf.string),
            "targets": tf.TensorSpec([None], targets),
            "weights": tf.TensorSpec([None], tf.float32),
        },
    )


def _targets(protein: labelled.LabelledProtein) -> np.ndarray:
    labels, counts = protein.labels.reshape(-1), protein.counts.reshape(-1)
    if np.issubdtype(labels.dtype, np.floating):
        return np.where(counts, labels, 0).astype(np.float32)
    return np.where(counts, labels + 1, 0).astype(np.int32)


def _tokenize(dataset: tf.data.Dataset, output_features: Any) -> tf.data.Dataset:
    inputs = output_features["inputs"].vocabulary

    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rest = {key: value for key, value in example.items() if key != "sequence"}
        return {"inputs": inputs.encode_tf(example["sequence"]), **rest}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def _add(task: labelled.Task) -> None:
    targets = tf.float32 if task.is_regression else tf.int32
    plain = seqio.PassThroughVocabulary(size=len(task.classes) + 1)
    residues = byte_vocabulary.ByteTableVocabulary(vocabulary.PROT_T5)
    seqio.TaskRegistry.add(
        f"labels_{task.name}",
        source=seqio.FunctionDataSource(
            functools.partial(_dataset, name=task.name), splits=SPLITS
        ),
        preprocessors=[_tokenize, seqio.preprocessors.append_eos],
        output_features={
            "inputs": seqio.Feature(residues, add_eos=True),
            "targets": seqio.Feature(plain, add_eos=False, dtype=targets),
            "weights": seqio.Feature(plain, add_eos=False, dtype=tf.float32),
        },
        metric_fns=[],
    )


for published in published_tasks.TASKS.values():
    _add(published.task)
