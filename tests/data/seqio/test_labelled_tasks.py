"""Tasks with labels as SeqIO tasks."""

import numpy as np
import pytest
import seqio

from prottrans_jax.data.records import corpora
from prottrans_jax.downstream import published_tasks
from prottrans_jax.proteins import vocabulary
import prottrans_jax.tasks  # noqa: F401 (registers tasks)


@pytest.fixture
def labels(tmp_path, monkeypatch):
    monkeypatch.setenv(corpora.DATA_DIR, str(tmp_path))
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def examples(name, split):
    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(split=split, shuffle=False, sequence_length=None)
    return list(dataset.as_numpy_iterator())


def test_classes_of_residues_are_shifted_so_that_0_does_not_count(labels):
    (labels / "secondary_structure_3.fasta").write_text(
        ">a SET=train TARGET=HECC MASK=0111\nMKVA\n>b SET=casp12 TARGET=EE\nML\n"
    )
    (train,) = examples("labels_secondary_structure_3", "train")
    assert train["targets"].tolist() == [0, 2, 3, 3]
    assert train["weights"].tolist() == [0, 1, 1, 1]
    ids = vocabulary.PROT_T5.encode("MKVA").tolist()
    assert train["inputs"].tolist() == [*ids, vocabulary.PROT_T5.eos_id]
    (test,) = examples("labels_secondary_structure_3", "test")
    assert (test["id"], test["targets"].tolist()) == (b"b", [2, 2])
    assert examples("labels_secondary_structure_3", "validation") == []


def test_number_of_a_protein(labels):
    (labels / "gb1.csv").write_text(
        "sequence,target,set,validation\nMQYK,1.5,train,True\n"
    )
    (example,) = examples("labels_gb1", "validation")
    np.testing.assert_array_equal(example["targets"], np.float32([1.5]))


@pytest.mark.parametrize("name", published_tasks.TASKS)
def test_every_published_task_is_registered(name):
    assert f"labels_{name}" in seqio.TaskRegistry.names()


def test_missing_file_is_named(labels):
    with pytest.raises(ValueError, match="no file for location; one is needed"):
        examples("labels_location", "train")
