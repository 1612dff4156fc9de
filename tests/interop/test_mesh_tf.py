"""Mesh-TensorFlow's checkpoints of T5. Oracle: one in their layout, and its outputs."""

import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prottrans_jax.interop import huggingface, mesh_tf
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5

UNROLLED = compute_config.ComputeConfig(scan_layers=False)
TINY = t5.T5Config(
    vocab_size=31,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    mlp_activations=("gelu", "linear"),
    tie_embeddings=False,
)


@pytest.fixture
def tf():
    """TensorFlow, which reads and writes these files."""
    return pytest.importorskip("tensorflow")


def random_params(config, dtype=np.float32):
    shapes = jax.eval_shape(lambda: t5.init_params(config, jax.random.key(0), UNROLLED))
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32).astype(dtype), shapes
    )


def assert_same(ours, theirs):
    ours = traverse_util.flatten_dict(ours, sep="/")
    theirs = traverse_util.flatten_dict(theirs, sep="/")
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert np.array_equal(ours[name], array), name


@pytest.mark.usefixtures("tf")
def test_outputs_of_the_sample(shared):
    folder = shared / "data" / "interop"
    checkpoint = mesh_tf.read(folder / "mtf_tiny_prott5", scan_layers=True)
    assert checkpoint.source.name == "model.ckpt-1000"
    assert "with slots" in checkpoint.form
    with np.load(folder / "hf_tiny" / "prot_t5" / "expected.npz") as arrays:
        expected = dict(arrays)
    logits = jax.jit(
        lambda params: t5.T5(checkpoint.config, checkpoint.compute).apply(
            {"params": params},
            jnp.asarray(expected["input_ids"]),
            jnp.asarray(expected["decoder_input_ids"]),
            encoder_segment_ids=jnp.asarray(expected["attention_mask"], jnp.int32),
            deterministic=True,
        )
    )(checkpoint.params)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


@pytest.mark.usefixtures("tf")
def test_same_parameters_as_the_other_copy_of_the_model(shared):
    folder = shared / "data" / "interop"
    ours = mesh_tf.read(folder / "mtf_tiny_prott5" / "model.ckpt-1000")
    theirs = huggingface.read(folder / "hf_tiny" / "prot_t5")
    assert ours.config == theirs.config
    assert_same(ours.params, theirs.params)


def test_rewritten_sample_is_bit_equal(shared, tmp_path, tf):
    folder = shared / "data" / "interop" / "mtf_tiny_prott5"
    checkpoint = mesh_tf.read(folder)
    mesh_tf.write(tmp_path, checkpoint.config, checkpoint.params, step=1000)
    theirs = tf.train.load_checkpoint(str(folder))
    ours = tf.train.load_checkpoint(str(tmp_path))
    names = [n for n in theirs.get_variable_to_shape_map() if "_slot_" not in n]
    assert set(ours.get_variable_to_shape_map()) == set(names)
    for name in names:
        one, other = ours.get_tensor(name), theirs.get_tensor(name)
        assert np.asarray(one).dtype == np.asarray(other).dtype, name
        assert np.array_equal(one, other), name


@pytest.mark.usefixtures("tf")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_own_writes_read_back(tmp_path, dtype):
    params = random_params(TINY, dtype)
    mesh_tf.write(tmp_path, TINY, params, step=7, block_bytes=1000)  # several parts
    mesh_tf.write(tmp_path, TINY, params, step=12, block_bytes=1000)
    checkpoint = mesh_tf.read(tmp_path)
    assert checkpoint.source.name == "model.ckpt-12"
    assert checkpoint.config == TINY
    assert checkpoint.compute.param_dtype == dtype
    assert_same(checkpoint.params, params)
    assert not list(tmp_path.glob("*.part-*"))
    with pytest.raises(FileExistsError, match=r"model\.ckpt-12"):
        mesh_tf.write(tmp_path, TINY, params, step=12)


def test_a_file_called_checkpoint_of_another_program_stays(tmp_path):
    theirs = 'model_checkpoint_path: "model.ckpt-3"\n'
    (tmp_path / "checkpoint").write_text(theirs)
    with pytest.raises(FileExistsError, match="checkpoint exists"):
        mesh_tf.write(tmp_path, TINY, random_params(TINY, np.float32), step=7)
    assert (tmp_path / "checkpoint").read_text() == theirs


def test_names_of_another_version_of_the_code(shared):
    """T5X's sample: rms_norm, gated MLP, own table of logits. Its weights are lost."""
    text = (
        shared / "data" / "interop" / "mtf_tiny_t5_names" / "model-info.txt"
    ).read_text()
    names = [
        line.split()[1]
        for line in text.splitlines()
        if line.startswith("Variable ") and "_slot_" not in line
    ]
    assert len(names) == 52
    ours = {rule.native for rule in mesh_tf._table(names)}
    config = dataclasses.replace(TINY, num_decoder_layers=2)
    shapes = jax.eval_shape(lambda: t5.init_params(config, jax.random.key(0), UNROLLED))
    assert ours == set(traverse_util.flatten_dict(shapes, sep="/"))


@pytest.mark.usefixtures("tf")
def test_encoder_alone_and_what_is_not_there(tmp_path):
    config = dataclasses.replace(
        TINY, num_decoder_layers=0, mlp_activations=("relu",), tie_embeddings=True
    )
    params = random_params(config)
    mesh_tf.write(tmp_path, config, params)
    assert_same(mesh_tf.read(tmp_path).params, params)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        mesh_tf.read(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model\.ckpt-STEP\.index"):
        mesh_tf.read(tmp_path / "empty")


@pytest.mark.usefixtures("tf")
def test_a_damaged_index_is_named(tmp_path):
    mesh_tf.write(tmp_path, TINY, random_params(TINY))
    index = next(tmp_path.glob("*.index"))
    data = index.read_bytes()
    for content in (data[:-9], data[:40] + bytes(60) + data[100:], b"x" * 999):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=f"{index.with_suffix('')} is damaged, or"):
            mesh_tf.read(tmp_path)


def test_another_model_is_refused_by_name(tmp_path, tf):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt-1"),
        tensor_names=["bert/pooler/kernel"],
        shape_and_slices=[""],
        tensors=[tf.ones((2, 3))],
    )
    with pytest.raises(ValueError, match="bert/pooler/kernel"):
        mesh_tf.read(tmp_path)
