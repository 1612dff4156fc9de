"""Heads that others published, against their published predictions and by hand."""

import h5py
import jax
import numpy as np
import pytest

from prottrans_jax.downstream import head_folders, published_heads
from prottrans_jax.files import digests


def _published_predictions(path):
    """(sequence, classes, probabilities) in a file of TMbed's format 3."""
    for block in path.read_text().split(">")[1:]:
        rows = [line.split("\t") for line in block.splitlines()[2:] if line]
        yield (
            "".join(row[0] for row in rows),
            "".join(row[1] for row in rows),
            np.array([[float(x) for x in row[2:]] for row in rows]),
        )


def test_networks_of_tmbed_give_the_published_probabilities(shared):
    head = published_heads.load(shared / "data/interop/heads/tmbed_cnn")
    folder = shared / "data/interop/prott5_tmbed"
    with h5py.File(folder / "prott5_xl_u50_half.h5") as file:
        number = 0
        predict = jax.jit(head.__call__)
        for sequence, _, expected in _published_predictions(folder / "sample_3.pred"):
            vectors = file[digests.md5(sequence.encode())][()]
            # Padding as in a batch with a longer protein.
            x = np.zeros((1, 300, 1024), np.float32)
            x[0, : len(sequence)] = vectors
            mask = np.arange(300)[None] < len(sequence)
            got = np.asarray(predict(x, mask))[0, : len(sequence)]
            # Two digits are published; the network ran in another precision.
            np.testing.assert_allclose(got, expected, atol=0.0051)
            number += 1
    assert number == 3


def _drawn(*shape):
    return np.random.default_rng(len(shape) + shape[0]).normal(size=shape).astype("f4")


def _state_dict(*layers):
    arrays = {}
    for number, shape in enumerate(layers):
        arrays[f"layer{number}.0.weight"] = _drawn(*shape)
        arrays[f"layer{number}.0.bias"] = _drawn(shape[0])
    return arrays


def test_structure_head_of_bio_embeddings_predicts_each_task_with_its_own_layer():
    arrays = _state_dict((4, 6, 7, 1), (3, 4, 7, 1), (8, 4, 7, 1), (2, 4, 7, 1))
    head = published_heads.of_arrays(arrays, "file")
    assert [task.num_outputs for task in head.tasks] == [3, 8, 2]
    assert head.tasks[1].classes == tuple("GHIBESTC")
    x = _drawn(5, 6)
    probabilities = np.asarray(head(x[None], np.ones((1, 5), bool)))[0]

    def convolution(x, number):
        weight = arrays[f"layer{number}.0.weight"][..., 0]
        padded = np.pad(x, ((3, 3), (0, 0)))
        rows = [np.einsum("li,oil->o", padded[i : i + 7], weight) for i in range(5)]
        return np.array(rows) + arrays[f"layer{number}.0.bias"]

    hidden = np.maximum(convolution(x, 0), 0)
    start = 0
    for number, size in enumerate((3, 8, 2), start=1):
        logits = convolution(hidden, number)
        expected = np.exp(logits - logits.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        np.testing.assert_allclose(
            probabilities[:, start : start + size], expected, atol=1e-5
        )
        start += size


def test_location_head_of_bio_embeddings_has_ten_locations_then_membrane():
    arrays = _state_dict((4, 6), (10, 4), (2, 4))
    head = published_heads.of_arrays(arrays, "file")
    assert [task.name for task in head.tasks] == ["location", "membrane"]
    x = _drawn(5, 6)
    got = np.asarray(head(x[None], np.ones((1, 5), bool)))[0]
    hidden = arrays["layer0.0.weight"] @ x.mean(0) + arrays["layer0.0.bias"]
    logits = arrays["layer2.0.weight"] @ np.maximum(hidden, 0)
    logits += arrays["layer2.0.bias"]
    expected = 1 / (1 + np.exp(logits[0] - logits[1]))
    assert got[11] == pytest.approx(expected, abs=1e-5)


def test_head_of_prost_t5_predicts_3di_states_after_its_prefix(tmp_path):
    arrays = _state_dict((32, 24, 7, 1), (20, 32, 7, 1))
    head = published_heads.of_arrays(arrays, "file")
    assert head.tasks == (published_heads.STRUCTURE_3DI,)
    assert head.encoder.prefix == "<AA2fold>"
    # It can be kept as one of ours.
    head_folders.save(tmp_path / "head", head)
    again = head_folders.load(tmp_path / "head")
    x, mask = _drawn(1, 5, 24), np.ones((1, 5), bool)
    np.testing.assert_array_equal(again(x, mask), head(x, mask))


def test_other_state_dicts_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"layer0\.0\.weight \(4, 6\)"):
        published_heads.of_arrays(_state_dict((4, 6), (7, 4)), "file")
