"""Batches of labelled proteins: their order, padding, labels and memory."""

import numpy as np
import pytest

from prottrans_jax import types
from prottrans_jax.downstream import labelled, labelled_rows

TASK = labelled.Task("t", "residue", ("H", "E", "C"), "accuracy")


class _Inputs:
    identity = "made up"
    bytes_per_position = 4

    def num_positions(self, protein):
        return min(len(protein.residues), 9)  # Longer ones are truncated.

    def features(self, proteins, length, rows):
        lengths = np.zeros(rows, np.int32)
        for row, protein in enumerate(proteins):
            lengths[row] = self.num_positions(protein)
        return {"lengths": lengths, "row_length": np.full(rows, length)}


def _protein(number, length=None, classes=None, mask=None):
    length = 3 + number % 7 if length is None else length
    labels = np.full(length, number % 3) if classes is None else np.array(classes)
    return labelled.LabelledProtein(
        f"P{number}",
        "A" * length,
        labels.astype(np.int32),
        mask,
        "train",
        f"f:{number}",
    )


def _rows(proteins, batch_size=4, task=TASK, **options):
    data = labelled.LabelledSet(task, proteins)
    options = {"is_training": True, **options}
    return labelled_rows.LabelledRows(data, _Inputs(), batch_size=batch_size, **options)


def test_every_protein_is_in_an_epoch_once_and_epochs_differ():
    rows = _rows([_protein(i) for i in range(18)])
    assert isinstance(rows, types.Loader) and not isinstance(rows, types.TokenLoader)
    assert rows.batches_per_epoch == 5
    epochs = [
        [name for index in range(5) for name in rows.example_ids(5 * epoch + index)]
        for epoch in (0, 1)
    ]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"P{i}" for i in range(18))
    assert epochs[0] != epochs[1]
    # A pure function of (seed, epoch), also if asked from the end.
    again = _rows([_protein(i) for i in range(18)])
    assert again.example_ids(9) == rows.example_ids(9)
    assert again.example_ids(0) == rows.example_ids(0)
    assert _rows([_protein(i) for i in range(18)], seed=1).example_ids(
        9
    ) != again.example_ids(9)


def test_labels_that_do_not_count_have_no_weight():
    protein = _protein(
        0,
        classes=[0, labelled.NO_CLASS, 2, 1],
        length=4,
        mask=np.array([True, True, False, True]),
    )
    batch = _rows([protein], batch_size=2, is_training=False).batch(0)
    np.testing.assert_array_equal(batch["label_weights"][0, :4], [1, 0, 0, 1])
    np.testing.assert_array_equal(batch["labels"][0, :4], [0, 0, 0, 1])
    assert batch["label_weights"][1].sum() == 0  # No protein.


def test_labels_of_a_truncated_protein_are_truncated():
    batch = _rows([_protein(0, length=12)], batch_size=1).batch(0)
    assert batch["label_weights"].sum() == 9


def test_regression_of_proteins_has_a_number_for_each_row():
    task = labelled.Task("t", "protein", (), "spearman")
    values = [2.5, np.nan]
    proteins = [
        labelled.LabelledProtein(
            f"P{i}", "AC", np.array(x, np.float32), None, "train", ""
        )
        for i, x in enumerate(values)
    ]
    batch = _rows(proteins, batch_size=3, task=task, is_training=False).batch(0)
    np.testing.assert_array_equal(batch["labels"], [2.5, 0, 0])
    np.testing.assert_array_equal(batch["label_weights"], [1, 0, 0])


def test_rows_of_a_host_are_those_of_the_whole_batch():
    rows = _rows([_protein(i) for i in range(6)], batch_size=4)
    for index in range(2):
        whole = rows.batch(index)
        part = rows.batch(index, rows=np.array([1, 3]))
        for name, feature in part.items():
            np.testing.assert_array_equal(feature, whole[name][[1, 3]])


def test_restore_refuses_other_labels_by_name():
    proteins = [_protein(i) for i in range(6)]
    state = _rows(proteins).state(7)
    assert _rows(proteins).restore(state) == 7
    proteins[2] = _protein(2, classes=[1] * 5, length=5)
    with pytest.raises(ValueError, match="proteins: "):
        _rows(proteins).restore(state)
    with pytest.raises(ValueError, match="seed: 0 -> 3"):
        _rows([_protein(i) for i in range(6)], seed=3).restore(state)


def test_rows_have_few_lengths():
    rows = _rows([_protein(i, length=5 + i) for i in range(300)], batch_size=2)
    inputs = rows._inputs
    inputs.num_positions = lambda protein: len(protein.residues)
    rows = labelled_rows.LabelledRows(
        labelled.LabelledSet(TASK, rows._proteins),
        inputs,
        batch_size=2,
        is_training=True,
    )
    lengths = {int(rows.batch(i)["row_length"][0]) for i in range(150)}
    assert 1 < len(lengths) <= 8


def test_batch_that_is_too_large_names_the_longest_protein(monkeypatch):
    monkeypatch.setattr(labelled_rows, "_MAX_BATCH_BYTES", 100)
    with pytest.raises(ValueError, match=r"f:5: 'P5' has 8 residues; a batch of 4"):
        _rows([_protein(i) for i in range(6)])
