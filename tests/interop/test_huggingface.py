"""Folders in Hugging Face's layout. Oracle: transformers and files it wrote."""

import hashlib
import json
import re
import shutil
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from prottrans_jax.interop import families, huggingface, safetensors
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5

UNROLLED = compute_config.ComputeConfig(scan_layers=False)
T5 = t5.T5Config(
    vocab_size=31,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
)


def random_params(config, dtype=np.float32, seed=7):
    """Like the model's, but no two numbers alike."""
    import jax

    shapes = jax.eval_shape(lambda: t5.init_params(config, jax.random.key(0), UNROLLED))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32).astype(dtype), shapes
    )


def assert_same(ours, theirs):
    import jax

    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def check(path, x, y):
        assert x.dtype == y.dtype, path
        assert np.array_equal(x, y), path

    jax.tree_util.tree_map_with_path(check, ours, theirs)


PARITY = [
    "parity/dev/t5/v10",
    "parity/dev/t5/encoder_fp16",
    "parity/dev/bert/mlm",
    "parity/dev/bert/pretraining",
    "parity/dev/albert/mlm",
    "parity/dev/albert/pretraining",
    "parity/dev/electra/generator",
    "parity/dev/electra/discriminator",
    "parity/dev/xlnet/lm",
    "parity/dev/transfo_xl/lm",
    "data/interop/hf_tiny/prot_t5",
    "data/interop/hf_tiny/prot_t5_half_enc",
    "data/interop/hf_tiny/prot_bert",
    "data/interop/hf_tiny/prot_bert_ss3",
    "data/interop/hf_tiny/prot_albert",
    "data/interop/hf_tiny/prot_electra_generator",
    "data/interop/hf_tiny/prot_electra_discriminator",
    "data/interop/hf_tiny/prot_xlnet",
]
# Left out knowingly: counters, and the head of a downstream task.
NOT_READ = re.compile(r".*\.position_ids|classifier\..*|.*\.pos_emb\.inv_freq")


@pytest.mark.parametrize("scan_layers", [False, True], ids=["views", "stacked"])
@pytest.mark.parametrize("name", PARITY)
def test_there_and_back_is_bit_equal(shared, tmp_path, name, scan_layers):
    checkpoint = huggingface.read(shared / name, scan_layers=scan_layers)
    huggingface.write(tmp_path, checkpoint.config, checkpoint.params)
    theirs = huggingface.read_arrays(shared / name)
    ours = huggingface.read_arrays(tmp_path)
    assert ours.keys() <= theirs.keys()
    for array, values in ours.items():
        assert values.dtype == theirs[array].dtype
        assert values.shape == theirs[array].shape
        assert values.tobytes() == theirs[array].tobytes(), array
    kept = {values.tobytes() for values in ours.values()}
    for array in theirs.keys() - ours.keys():
        # Second names of tied tables, which transformers does not write either.
        assert NOT_READ.fullmatch(array) or theirs[array].tobytes() in kept, array
    again = huggingface.read(tmp_path, scan_layers=scan_layers)
    assert again.config == checkpoint.config


@pytest.mark.parametrize("name", PARITY)
def test_written_config_keeps_the_original_attributes(shared, tmp_path, name):
    """Attributes that are read and written back keep their values."""
    checkpoint = huggingface.read(shared / name)
    written = checkpoint.family.table.config_to_hf(checkpoint.config)
    original = checkpoint.attributes
    # Only the bare encoder is written, without the head of a downstream task.
    free = {"architectures", "use_mems_eval"}
    if checkpoint.config.__class__.__name__ == "T5Config":
        free |= {"num_decoder_layers"}
    for key in written.keys() & original.keys() - free:
        assert written[key] == original[key], key


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 1000])
def test_types_and_shards(tmp_path, dtype, max_shard_bytes):
    params = random_params(T5, np.dtype(dtype))
    files = huggingface.write(tmp_path, T5, params, max_shard_bytes=max_shard_bytes)
    assert (len(files) > 1) == (max_shard_bytes == 1000)
    assert all(path.exists() for path in files)
    checkpoint = huggingface.read(tmp_path)
    assert checkpoint.family is families.FAMILIES["t5"]
    assert checkpoint.stored_dtype == np.dtype(dtype)
    assert_same(checkpoint.params, params)


def test_cast_on_the_way_out_and_in(tmp_path):
    params = random_params(T5)
    huggingface.write(tmp_path, T5, params, dtype="float16")
    checkpoint = huggingface.read(tmp_path, param_dtype="bfloat16", dtype="bfloat16")
    assert checkpoint.stored_dtype == np.float16
    assert checkpoint.compute.dtype == ml_dtypes.bfloat16
    ours = checkpoint.params["encoder"]["layers_1"]["mlp"]["wi"]["kernel"]
    expected = params["encoder"]["layers_1"]["mlp"]["wi"]["kernel"]
    assert ours.dtype == ml_dtypes.bfloat16
    expected = expected.astype(np.float16).astype(ml_dtypes.bfloat16)
    assert np.array_equal(ours, expected)


def test_mixed_types_are_held_without_loss(tmp_path):
    # Files of half precision made by transformers keep T5's `wo` in float32.
    arrays = families.FAMILIES["t5"].table.params_to_hf(random_params(T5), T5)
    half = {
        name: x if name.endswith("wo.weight") else x.astype(np.float16)
        for name, x in arrays.items()
    }
    attributes = families.FAMILIES["t5"].table.config_to_hf(T5)
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    safetensors.save(tmp_path / "model.safetensors", half)
    checkpoint = huggingface.read(tmp_path)
    assert checkpoint.stored_dtype == np.float32
    tree = checkpoint.params["encoder"]["layers_0"]["mlp"]
    assert np.array_equal(
        tree["wo"]["kernel"],
        arrays["encoder.block.0.layer.1.DenseReluDense.wo.weight"].T,
    )


def test_unstacked_parameters_are_views_of_the_file(tmp_path):
    huggingface.write(tmp_path, T5, random_params(T5))
    leaf = huggingface.read(tmp_path).params["encoder"]["layers_0"]["mlp"]["wi"][
        "kernel"
    ]
    while not isinstance(leaf, np.memmap):
        assert leaf is not None
        leaf = leaf.base


# A folder, as transformers makes it, of each family: class, attributes of its config.
T5_ATTRIBUTES = dict(
    vocab_size=31, num_layers=2, num_heads=3, d_kv=4, d_model=10, d_ff=14
)
BERT_ATTRIBUTES = dict(
    vocab_size=31,
    num_hidden_layers=2,
    num_attention_heads=3,
    hidden_size=12,
    intermediate_size=14,
    max_position_embeddings=17,
)
XLNET_ATTRIBUTES = dict(vocab_size=31, n_layer=2, n_head=3, d_model=12, d_inner=14)
TRANSFORMERS = {
    "t5": ("T5ForConditionalGeneration", T5_ATTRIBUTES),
    "t5 encoder": ("T5EncoderModel", T5_ATTRIBUTES),
    "t5 1.1": (
        "T5ForConditionalGeneration",
        {
            **T5_ATTRIBUTES,
            "num_decoder_layers": 3,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bert": ("BertForMaskedLM", BERT_ATTRIBUTES),
    "bert encoder": ("BertModel", {**BERT_ATTRIBUTES, "hidden_act": "relu"}),
    "bert two heads": ("BertForPreTraining", BERT_ATTRIBUTES),
    "albert": ("AlbertForMaskedLM", {**BERT_ATTRIBUTES, "embedding_size": 5}),
    "albert two heads": (
        "AlbertForPreTraining",
        {**BERT_ATTRIBUTES, "embedding_size": 5, "hidden_act": "gelu"},
    ),
    "generator": ("ElectraForMaskedLM", {**BERT_ATTRIBUTES, "embedding_size": 7}),
    "discriminator": (
        "ElectraForPreTraining",
        {**BERT_ATTRIBUTES, "embedding_size": 12},
    ),
    "electra encoder": ("ElectraModel", {**BERT_ATTRIBUTES, "embedding_size": 7}),
    "xlnet": ("XLNetLMHeadModel", XLNET_ATTRIBUTES),
    "xlnet encoder": ("XLNetModel", {**XLNET_ATTRIBUTES, "ff_activation": "relu"}),
}
SAVED = ["safetensors", "shards", "bin", "bin shards", "bin before 1.6"]


def transformers_model(name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    class_name, attributes = TRANSFORMERS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(11)
    model = model_class(model_class.config_class(**attributes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases too: nothing may match by accident.
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def save_in_form(model, folder, form):
    import torch

    if not form.startswith("bin"):
        shards = {"max_shard_size": "1KB"} if form == "shards" else {}
        model.save_pretrained(folder, **shards)
        return
    # transformers 5 writes no such file any more.
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if form != "bin shards":
        zip_format = form == "bin"
        torch.save(
            state,
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=zip_format,
        )
        return
    names = list(state)
    files = {
        name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin"
        for i, name in enumerate(names)
    }
    for file in set(files.values()):
        torch.save({n: state[n] for n in names if files[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


def outputs(model):
    import torch

    torch.manual_seed(13)
    ids = torch.randint(3, model.config.vocab_size, (2, 9))
    inputs = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, :5]
    with torch.no_grad():
        return model(**inputs)[0].numpy()


# Every form with T5; the forms do not know families.
CASES = [(name, SAVED[0]) for name in TRANSFORMERS]
CASES += [(name, "bin") for name in TRANSFORMERS if not name.startswith("t5")]
CASES += [
    (name, form) for form in SAVED[1:] for name in TRANSFORMERS if name[:2] == "t5"
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_transformers_to_ours_to_transformers(tmp_path, name, form):
    model = transformers_model(name)
    (tmp_path / "theirs").mkdir()
    save_in_form(model, tmp_path / "theirs", form)
    checkpoint = huggingface.read(tmp_path / "theirs", scan_layers=True)
    shard = 10**9 if form == "safetensors" else 1000
    huggingface.write(
        tmp_path / "ours", checkpoint.config, checkpoint.params, max_shard_bytes=shard
    )
    again, info = type(model).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    ours, theirs = again.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    for parameter, value in theirs.items():
        assert ours[parameter].numpy().tobytes() == value.numpy().tobytes(), parameter
    # Equal but for where the arrays lie in memory, which torch's products depend on.
    np.testing.assert_allclose(
        outputs(again.eval()), outputs(model), rtol=1e-6, atol=1e-6
    )


def fake_cache(root, repository, folder, revision="a1b2"):
    """The hub's cache: snapshots of links to blobs, and a name for one of them."""
    repository = root / f"models--{repository.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(repository / "blobs" / path.name)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision)


def test_released_names_resolve_to_the_cache(tmp_path, monkeypatch):
    huggingface.write(tmp_path / "made", T5, random_params(T5))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fake_cache(tmp_path / "cache", "Rostlab/prot_t5_xl_uniref50", tmp_path / "made")
    for name in (
        *("prot_t5_xl_uniref50", "Rostlab/prot_t5_xl_uniref50"),
        "prot_t5_xl_u50",  # A short name.
    ):
        assert_same(huggingface.read(name).params, random_params(T5))


def test_cache_folder_follows_the_variables_of_hugging_face(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert huggingface.cache_dir() == tmp_path / ".cache/huggingface/hub"
    for name, folder in (
        ("XDG_CACHE_HOME", "a/huggingface/hub"),
        ("HF_HOME", "a/hub"),
        ("HF_HUB_CACHE", "a"),
    ):
        monkeypatch.setenv(name, "~/a")
        assert huggingface.cache_dir() == tmp_path / folder
        monkeypatch.setenv(name, "gs://bucket")
        with pytest.raises(ValueError, match=f"{name}=gs://bucket: buckets"):
            huggingface.cache_dir()


def test_error_for_an_unknown_name_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download Rostlab/prot_bert`") as e:
        huggingface.read("prot_bert")
    assert str(tmp_path) in str(e.value)
    with pytest.raises(FileNotFoundError, match=r"\./prot_bert: no such folder"):
        huggingface.read("./prot_bert")


def test_revisions_are_branches_tags_and_commits(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface.write(tmp_path / "made", T5, random_params(T5))
    commits = ["973be27c52ee6474", "97fe02c8de32aed5"]
    for commit in commits:
        fake_cache(tmp_path / "cache", "Rostlab/prot_t5_x", tmp_path / "made", commit)
    refs = tmp_path / "cache" / "models--Rostlab--prot_t5_x" / "refs"
    (refs / "pr").mkdir()
    (refs / "pr" / "1").write_text(commits[0])
    for revision, commit in (
        (None, commits[1]),
        ("main", commits[1]),
        ("pr/1", commits[0]),
        (commits[0], commits[0]),
        (commits[1][:7], commits[1]),
    ):
        assert huggingface.find("prot_t5_x", revision=revision).name == commit
    for revision in ("97", "v3", "x" * 40):
        with pytest.raises(FileNotFoundError, match=f"--revision {revision}`"):
            huggingface.find("prot_t5_x", revision=revision)
    with pytest.raises(ValueError, match="is a folder; only a repository"):
        huggingface.find(tmp_path / "made", revision="main")


def test_download_fetches_only_what_is_read(tmp_path, monkeypatch):
    huggingface.write(tmp_path / "made", T5, random_params(T5))
    listed = ["config.json", "spiece.model", "model.safetensors", "tf_model.h5"]
    listed += ["pytorch_model.bin", "pytorch_model_600k.bin"]
    asked = {}

    def snapshot_download(repository, revision, allow_patterns):
        asked[repository] = allow_patterns
        assert revision == "v2"
        return str(tmp_path / "made")

    def model_info(repository, revision, timeout):
        assert revision == "v2"
        files = [types.SimpleNamespace(rfilename=name) for name in listed]
        return types.SimpleNamespace(siblings=files)

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    hub = types.SimpleNamespace(
        model_info=model_info, snapshot_download=snapshot_download
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    folder = huggingface.find("prot_t5_xl_bfd", download=True, revision="v2")
    assert_same(huggingface.read(folder).params, random_params(T5))
    patterns = asked["Rostlab/prot_t5_xl_bfd"]
    import fnmatch

    fetched = [x for x in listed if any(fnmatch.fnmatch(x, p) for p in patterns)]
    assert fetched == ["config.json", "spiece.model", "model.safetensors"]


def test_a_download_without_network_is_tried_once_and_said(tmp_path, monkeypatch):
    calls = []

    class ConnectError(Exception):
        """No OSError, as in versions of the hub that use httpx."""

    def model_info(repository, revision, timeout):
        calls.append(repository)
        raise ConnectError("[Errno -2] Name or service not known\nmore")

    hub = types.SimpleNamespace(model_info=model_info)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be fetched") as error:
        huggingface.find("prot_bert", download=True)
    assert calls == ["Rostlab/prot_bert"]
    assert "Name or service not known. Check" in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        huggingface.read(tmp_path)
    files = huggingface.write(tmp_path, T5, random_params(T5), max_shard_bytes=4000)
    files[1].unlink()
    missing = rf"lists {len(files)} files, of which are missing: {files[1].name}\."
    with pytest.raises(FileNotFoundError, match=missing):
        huggingface.read(tmp_path)
    for path in [*files, tmp_path / "model.safetensors.index.json"]:
        path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"It has config\.json"):
        huggingface.read(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[x", "not .*weight_map"),
        ("{}", "not .*weight_map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "not a file of this folder"),
    ],
)
def test_an_invalid_index_is_named(tmp_path, index, message):
    files = huggingface.write(tmp_path, T5, random_params(T5), max_shard_bytes=4000)
    path = files[0].with_name("model.safetensors.index.json")
    path.write_text(index)
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        huggingface.read(tmp_path)


@pytest.mark.parametrize("change", [{"num_heads": 0}, {"d_model": "12"}])
def test_invalid_sizes_are_an_error_of_the_file(tmp_path, change):
    huggingface.write(tmp_path, T5, random_params(T5))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=str(tmp_path)):
        huggingface.read(tmp_path)


def test_weights_are_not_overwritten(tmp_path):
    huggingface.write(tmp_path, T5, random_params(T5))
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists"):
        huggingface.write(tmp_path, T5, random_params(T5))


def test_another_table_under_a_tied_name_is_refused(tmp_path):
    huggingface.write(tmp_path, T5, random_params(T5))
    path = tmp_path / "model.safetensors"
    arrays = {name: np.array(x) for name, x in safetensors.load(path).items()}
    arrays["lm_head.weight"] = arrays["shared.weight"] + 1
    safetensors.save(path, arrays)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from"):
        huggingface.read(tmp_path)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_are_compared_with_the_sha256_that_is_given(tmp_path):
    path, *_ = huggingface.write(tmp_path / "one", T5, random_params(T5))
    assert_same(
        huggingface.read(tmp_path / "one", sha256=digest(path)).params,
        random_params(T5),
    )
    with pytest.raises(ValueError, match=f"{path} has the SHA-256 {digest(path)}, not"):
        huggingface.read(tmp_path / "one", sha256="0" * 64)
    with pytest.raises(ValueError, match="a SHA-256 has 64 hexadecimal digits"):
        huggingface.read(tmp_path / "one", sha256="abc")


def test_every_shard_has_its_sha256(tmp_path):
    paths = huggingface.write(
        tmp_path / "x", T5, random_params(T5), max_shard_bytes=10_000
    )
    assert len(paths) > 1
    given = [digest(path) for path in paths]
    huggingface.read(tmp_path / "x", sha256=",".join(given))
    with pytest.raises(ValueError, match=rf"has 1 digests, .* {len(paths)} files"):
        huggingface.read(tmp_path / "x", sha256=given[0])
    with pytest.raises(ValueError, match=f"{paths[0]} has the SHA-256"):
        huggingface.read(tmp_path / "x", sha256=",".join([given[1], *given[1:]]))


def test_a_download_without_revision_names_the_commit(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache/models--Rostlab--prot_bert/snapshots/a1b2c3d"
    huggingface.write(folder, T5, random_params(T5))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    hub = types.SimpleNamespace(
        model_info=lambda *_, **__: types.SimpleNamespace(siblings=[]),
        snapshot_download=lambda *_, **__: str(folder),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    huggingface.find("prot_bert", download=True)
    assert "--revision a1b2c3d" in caplog.text


def test_nothing_is_fetched_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="or pass download=True"):
        huggingface.read("prot_bert")
