"""T5X's checkpoints. Oracle: files and arrays that T5X itself wrote."""

import dataclasses
import pathlib
import shutil

from flax import serialization, traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prottrans_jax.interop import flax_msgpack, layer_stacks, t5_names, t5x
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5

GOLDEN = pathlib.Path("data/interop/t5x_golden")
UNROLLED = compute_config.ComputeConfig(scan_layers=False)
TINY = t5.T5Config(
    vocab_size=37,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def random_params(config, dtype=np.float32):
    shapes = jax.eval_shape(lambda: t5.init_params(config, jax.random.key(0), UNROLLED))
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32).astype(dtype), shapes
    )


def assert_same(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert np.array_equal(ours[name], array), name


def golden_logits(checkpoint, arrays):
    """Of the packed batch, and where they are comparable.

    One decoder segment has no encoder segment: T5X averages over the whole row there.
    """
    model = t5.T5(checkpoint.config, checkpoint.compute)
    batch = {
        name.removeprefix("batch/"): jnp.asarray(x)
        for name, x in arrays.items()
        if name.startswith("batch/")
    }
    logits = jax.jit(
        lambda params: model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            deterministic=True,
        )
    )(checkpoint.params)
    segments = arrays["batch/decoder_segment_ids"]
    encoded = arrays["batch/encoder_segment_ids"]
    known = (segments[:, :, None] == encoded[:, None, :]).any(axis=-1)
    return np.asarray(logits), known & (segments > 0)


@pytest.fixture(params=["t5v10_unscanned", "scalable_v10_scanned"])
def golden(request, shared):
    with np.load(shared / GOLDEN / f"t5x_golden_{request.param}.npz") as arrays:
        return dict(arrays)


def tree_at(arrays, prefix):
    chosen = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return traverse_util.unflatten_dict(chosen, sep="/")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logits_of_a_golden_state(golden, tmp_path, scan_layers):
    content = {"version": 3, "optimizer": tree_at(golden, "step0/")}
    path = tmp_path / "checkpoint_0"
    path.write_bytes(serialization.msgpack_serialize(content))
    checkpoint = t5x.read(path, scan_layers=scan_layers)
    scanned = "encoder" in content["optimizer"]["target"]["encoder"]
    assert ("unscanned" in checkpoint.form) != scanned
    assert checkpoint.config.share_relative_bias != scanned
    assert checkpoint.config.tie_embeddings
    logits, real = golden_logits(checkpoint, golden)
    np.testing.assert_allclose(logits[real], golden["logits"][real], rtol=0, atol=2e-5)


def test_legacy_and_orbax_checkpoints_of_one_t5x_run_are_equal(shared):
    """Written by the same three steps of T5X, in its old form and in its new one."""
    legacy = t5x.open_(shared / GOLDEN / "t5x_legacy_v3_checkpoint_6")
    orbax = t5x.open_(shared / GOLDEN / "t5x_orbax_ocdbt_checkpoint_6")
    assert (legacy.generation, orbax.generation) == ("v3", "Orbax OCDBT")
    assert legacy.step == orbax.step == 6
    for one, other in (
        (legacy.params, orbax.params),
        (legacy.optimizer, orbax.optimizer),
    ):
        assert len(one) > 50
        assert set(one) == set(other)
        for name, array in one.items():
            values = array.read()
            assert values.shape == array.shape and values.dtype == array.dtype
            assert np.array_equal(values, other[name].read()), name


@pytest.mark.parametrize(
    "name", ["t5x_legacy_v3_checkpoint_6", "t5x_orbax_ocdbt_checkpoint_6"]
)
def test_sizes_come_from_the_shapes(shared, name):
    checkpoint = t5x.read(shared / GOLDEN / name)
    config = checkpoint.config
    assert (config.vocab_size, config.d_model, config.d_ff) == (384, 8, 16)
    assert (config.num_heads, config.head_dim) == (4, 3)
    assert (config.num_layers, config.num_decoder_layers) == (2, 2)
    assert config.mlp_activations == ("gelu", "linear")
    assert not config.tie_embeddings
    expected = jax.eval_shape(
        lambda: t5.init_params(config, jax.random.key(0), UNROLLED)
    )
    assert jax.tree.map(np.shape, checkpoint.params) == jax.tree.map(np.shape, expected)
    assert "with optimizer state" in checkpoint.form


def test_single_file_agrees_with_flax(shared):
    path = shared / "data" / "interop" / "t5x" / "test_t5_tiny.checkpoint_0"
    theirs = serialization.msgpack_restore(path.read_bytes())
    contents = t5x.open_(path)
    assert (contents.generation, contents.step) == ("v3", 0)
    expected = flat(theirs["optimizer"]["target"])
    assert set(contents.params) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(contents.params[name].read(), array)
    assert t5x.read(path).config.vocab_size == 32128


def test_folders_without_their_description(shared):
    """A copy without .zarray files: the msgpack has the same metadata."""
    contents = t5x.open_(shared / "data" / "interop" / "t5x" / "tiny_t5")
    arrays = {name: x.read() for name, x in contents.optimizer.items()}
    assert arrays["param_states/step"] == 1
    assert np.array_equal(arrays["param_states/bias"], np.ones(5, np.float32))
    kernel = arrays["param_states/kernel"]
    assert kernel.shape == (10, 5) and kernel.dtype == np.float64
    assert len(np.unique(kernel)) == 50


def test_a_rewritten_checkpoint_is_laid_out_as_t5x_does(shared, tmp_path):
    original = shared / GOLDEN / "t5x_legacy_v3_checkpoint_6"
    checkpoint = t5x.read(original)
    written = t5x.write(tmp_path, checkpoint.config, checkpoint.params, step=6)
    assert written.name == "checkpoint_6"
    ours = serialization.msgpack_restore((written / "checkpoint").read_bytes())
    theirs = serialization.msgpack_restore((original / "checkpoint").read_bytes())
    assert ours["version"] == theirs["version"] == 3

    def leaves(tree):
        named = traverse_util.flatten_dict(
            tree, is_leaf=lambda _, x: isinstance(x, dict) and "driver" in x
        )
        return {"/".join(path): leaf for path, leaf in named.items()}

    ours, theirs = leaves(ours["optimizer"]), leaves(theirs["optimizer"])
    assert set(ours) == set(theirs)
    for name, leaf in theirs.items():
        if isinstance(leaf, dict):
            assert ours[name] == leaf, name
        else:
            assert ours[name].shape == leaf.shape, name
            assert ours[name].dtype == leaf.dtype, name
    for folder in original.glob("target.*"):
        for file in (".zarray",):
            assert (written / folder.name / file).read_text() == (
                folder / file
            ).read_text()
    assert_same(t5x.read(written).params, checkpoint.params)


def test_slots_have_the_shapes_that_t5x_gives_them(shared, tmp_path):
    with np.load(shared / GOLDEN / "t5x_golden_t5v10_unscanned.npz") as arrays:
        golden = dict(arrays)
    content = {"version": 3, "optimizer": {"target": tree_at(golden, "step0/target/")}}
    path = tmp_path / "theirs"
    path.write_bytes(serialization.msgpack_serialize(content))
    checkpoint = t5x.read(path)
    assert "without optimizer state" in checkpoint.form
    written = t5x.write(tmp_path, checkpoint.config, checkpoint.params)
    slots = t5x.open_(written).optimizer
    expected = tree_at(golden, "step3/state/param_states/")
    for name, array in flat(expected).items():
        assert slots[f"param_states/{name}"].shape == array.shape, name


def test_scanned_form_and_back(tmp_path, shared):
    params = random_params(TINY)
    written = t5x.write(tmp_path, TINY, params, scanned=True)
    contents = t5x.open_(written)
    shape = contents.params["encoder/encoder/attention/query/kernel"].shape
    assert shape == (10, 2, 3, 4)
    shape = contents.params[
        "decoder/decoder/encoder_decoder_attention/out/kernel"
    ].shape
    assert shape == (3, 3, 4, 10)
    checkpoint = t5x.read(written)
    assert checkpoint.config == TINY
    assert_same(checkpoint.params, params)
    # Slots: as in the checkpoint that T5X made.
    name = "t5x_golden_scalable_v10_scanned.npz"
    with np.load(shared / GOLDEN / name) as arrays:
        for full, array in arrays.items():
            if not full.startswith("step3/state/param_states/"):
                continue
            name, slot = full.removeprefix("step3/state/param_states/").rsplit("/", 1)
            shape = arrays[f"step0/target/{name}"].shape
            fresh = t5x._fresh_slots(shape, True, name)
            assert fresh[slot].shape == array.shape, full


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_own_writes_read_back(tmp_path, dtype, scan_layers):
    params = random_params(TINY, np.dtype(dtype))
    if scan_layers:
        params = layer_stacks.stack(params)
    t5x.write(tmp_path, TINY, params, step=3, optimizer_state=scan_layers)
    t5x.write(tmp_path, TINY, params, step=12, optimizer_state=scan_layers)
    checkpoint = t5x.read(tmp_path, scan_layers=scan_layers)
    assert checkpoint.source.name == "checkpoint_12"
    assert checkpoint.config == TINY
    assert checkpoint.compute.scan_layers == scan_layers
    assert checkpoint.compute.param_dtype == dtype
    assert_same(checkpoint.params, params)


def test_large_arrays_are_cut_into_chunks(tmp_path):
    params = random_params(TINY)
    written = t5x.write(tmp_path, TINY, params, max_chunk_bytes=200)
    chunks = list((written / "target.token_embedder.embedding").glob("*.0"))
    assert len(chunks) == 8  # 37 rows, five at a time
    assert_same(t5x.read(written).params, params)
    chunks[0].unlink()
    with pytest.raises(ValueError, match=r"token_embedder.*missing"):
        t5x.read(written)


def test_version_2_keeps_bfloat16_as_integers(tmp_path):
    params = random_params(TINY, ml_dtypes.bfloat16)
    bits = jax.tree.map(lambda x: x.view(np.uint16), params)
    content = {"version": 2, "optimizer": {"target": bits}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    checkpoint = t5x.read(tmp_path)
    assert "v2" in checkpoint.form
    assert_same(checkpoint.params, params)


def test_orbax_zarr_with_placeholders(tmp_path):
    """Between T5X's msgpack and the store of today: msgpack of names of folders."""
    params = random_params(TINY)
    written = t5x.write(tmp_path, TINY, params)
    state = tmp_path / "checkpoint_7" / "state"
    shutil.copytree(written, state)
    names = {
        ("target", *path.split("/")): "PLACEHOLDER://target." + path.replace("/", ".")
        for path in flat(params)
    }
    tree = traverse_util.unflatten_dict(names)
    tree["state"] = {"step": np.asarray(7, np.int32)}
    (state / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    checkpoint = t5x.read(tmp_path)
    assert "Orbax zarr" in checkpoint.form
    assert_same(checkpoint.params, params)


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("use_zarr3", [True, False])
def test_checkpoints_of_the_installed_orbax_are_read(tmp_path, use_ocdbt, use_zarr3):
    from orbax import checkpoint as ocp

    params = random_params(TINY)
    tree = {"target": params, "state": {"step": np.asarray(9, np.int32)}}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    with ocp.Checkpointer(handler) as saver:
        saver.save(tmp_path / "checkpoint_9" / "state", tree)
    contents = t5x.open_(tmp_path)
    assert contents.generation == ("Orbax OCDBT" if use_ocdbt else "Orbax zarr")
    assert contents.step == 9
    checkpoint = t5x.read(tmp_path)
    assert "without optimizer state" in checkpoint.form
    assert_same(checkpoint.params, params)


def test_one_bias_a_layer_is_kept_unless_all_are_equal():
    config = dataclasses.replace(TINY, share_relative_bias=False)
    params = flat(random_params(config))
    assert t5_names.config_of(params) == config
    assert t5_names.share_equal_biases(params).keys() == params.keys()
    for layer in range(2):
        params[f"encoder/layers_{layer}/relpos_bias/rel_embedding"] = np.ones((3, 32))
    shared = t5_names.share_equal_biases(params)
    assert np.array_equal(shared["encoder/relpos_bias/rel_embedding"], np.ones((3, 32)))
    assert "decoder/layers_0/relpos_bias/rel_embedding" in shared


def test_paths_without_a_readable_checkpoint_are_refused_with_the_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        t5x.read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="interrupted"):
        t5x.read(tmp_path)
    path = tmp_path / "checkpoint"
    path.write_bytes(serialization.msgpack_serialize({"params": np.ones(3)}))
    with pytest.raises(ValueError, match="keys params"):
        t5x.read(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="truncated"):
        t5x.read(path)


def test_msgpack_of_every_kind_reads_as_flax_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    tree = {
        "array": np.arange(30, dtype=np.int64).reshape(5, 6),  # cut into pieces
        "half": np.ones((2, 0, 3), np.float16),
        "bfloat16": np.arange(7).astype(ml_dtypes.bfloat16),
        "scalar": np.float32(2.5),
        "complex": 1 + 2j,
        "numbers": {"a": 3, "b": -7, "c": 300, "d": -70_000, "e": 2.5, "f": 1 << 40},
        "text": "x" * 300,
        "none": {"t": True, "f": False, "n": None},
        "long": {str(i): i for i in range(70_000)},
    }
    path = tmp_path / "tree"
    path.write_bytes(serialization.msgpack_serialize(tree))
    ours, theirs = (
        flax_msgpack.load(path),
        serialization.msgpack_restore(path.read_bytes()),
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def test_arrays_stay_in_the_file(tmp_path):
    path = tmp_path / "tree"
    path.write_bytes(serialization.msgpack_serialize({"x": np.ones((3, 4))}))
    array = flax_msgpack.load(path)["x"]
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize(
    ("name", "shape", "swapped"),
    [
        ("encoder/layers_0/attention/query/kernel", (128, 128), False),
        ("encoder/layers_0/attention/query/kernel", (256, 128), True),
        ("encoder/layers_0/attention/out/kernel", (128, 128), True),
        ("encoder/layers_0/attention/out/kernel", (512, 128), False),
        ("decoder/layers_1/mlp/wi/kernel", (128, 512), False),
        ("decoder/layers_1/mlp/wo/kernel", (512, 128), False),
        ("token_embedder/embedding", (512, 128), False),
    ],
)
def test_rows_of_a_stacked_matrix_are_d_model_and_t5xs_the_smaller_dimension(
    name, shape, swapped
):
    slots = {"v_row": "row", "v_col": "column"}
    others = {"v_row": "column", "v_col": "row"}
    renamed = t5_names.renamed_slots(name, shape, slots, stacked=True)
    assert renamed == (others if swapped else slots)
    assert t5_names.renamed_slots(name, shape, slots, stacked=False) == slots


def test_arrays_that_t5x_replicates_are_in_the_msgpack(tmp_path):
    """T5X reads a zarr folder with the sharding of its array; these have none."""
    config = dataclasses.replace(TINY, d_model=128, d_ff=160)
    written = t5x.write(tmp_path, config, random_params(config))
    content = serialization.msgpack_restore((written / "checkpoint").read_bytes())
    slots = content["optimizer"]["state"]["param_states"]["encoder"]["layers_0"]
    factored, whole = slots["mlp"]["wi"]["kernel"], slots["attention"]["out"]["kernel"]
    assert factored["v_row"].shape == (128,) and factored["v_col"].shape == (160,)
    assert whole["v"]["driver"] == "zarr" and whole["v_row"].shape == (1,)
