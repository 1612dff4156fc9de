"""`load_encoder` and `load_model` read all that `convert` reads. Oracle: one form."""

import jax
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.checkpoints import checkpointing, manifests, opening, run_identity
from prottrans_jax.interop import families, huggingface, mesh_tf, t5x
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import bert, electra, t5, xlnet

UNROLLED = compute_config.ComputeConfig(scan_layers=False)
T5 = t5.T5Config(
    vocab_size=128,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
)
SIZES = dict(num_layers=2, num_heads=3, head_dim=4, d_model=12, d_ff=14, max_length=40)
BERT = bert.BertConfig(vocab_size=30, **SIZES)
ELECTRA = electra.ElectraConfig(
    vocab_size=30,
    **SIZES,
    generator_num_layers=1,
    generator_num_heads=1,
    generator_head_dim=6,
    generator_d_model=6,
    generator_d_ff=9,
)
SEQUENCES = ["MKTAYIAKQRQISFVKSHF", "W"]


def random_params(module, config):
    shapes = jax.eval_shape(
        lambda: module.init_params(config, jax.random.key(0), UNROLLED)
    )
    rng = np.random.default_rng(9)
    return jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * 0.3).astype(np.float32), shapes
    )


def save_run(folder, config, params):
    """As the trainer does."""
    metadata = {"identity": run_identity.identity(model=config)}
    with checkpointing.Checkpointer(folder / "checkpoints") as saver:
        saver.save(4, {"params": params}, metadata)


def write_t5(form, folder):
    params = random_params(t5, T5)
    if form == "hf":
        huggingface.write(folder, T5, params)
    elif form == "t5x":
        t5x.write(folder, T5, params)
    elif form == "mtf":
        pytest.importorskip("tensorflow")
        mesh_tf.write(folder, T5, params)
    else:
        save_run(folder, T5, params)


@pytest.mark.parametrize(
    ("form", "prefix"),
    [("t5x", ""), ("t5x", "t5x:"), ("mtf", ""), ("mtf", "mtf:"), ("run", "")],
)
def test_t5_gives_the_same_vectors_and_logits_from_any_form(tmp_path, form, prefix):
    write_t5("hf", tmp_path / "hf")
    write_t5(form, tmp_path / "other")
    source = f"{prefix}{tmp_path / 'other'}"
    wanted = prottrans_jax.load_encoder(tmp_path / "hf").embed(SEQUENCES)
    encoder = prottrans_jax.load_encoder(source)
    for ours, theirs in zip(encoder.embed(SEQUENCES), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert encoder.name == "other"
    assert encoder.source.is_relative_to(tmp_path / "other")
    tokens, _ = encoder.tokenize(SEQUENCES[:1])
    logits = [
        prottrans_jax.load_model(place)(tokens, tokens[:, :5])
        for place in (tmp_path / "hf", source)
    ]
    np.testing.assert_array_equal(*logits)


def test_of_an_electra_run_the_discriminator_embeds(tmp_path):
    params = random_params(electra, ELECTRA)
    save_run(tmp_path / "run", ELECTRA, params)
    encoder = prottrans_jax.load_encoder(tmp_path / "run")
    assert encoder.config == opening.encoder_of(opening.read(tmp_path / "run")).config
    tokens, mask = encoder.tokenize(SEQUENCES)
    both = electra.Electra(ELECTRA, UNROLLED)
    tokens, mask = jax.device_put((tokens, mask))
    wanted = both.apply({"params": params}, tokens, mask, method="encode")
    for row, vectors in enumerate(encoder.embed(SEQUENCES)):
        residues = np.asarray(wanted)[row, 1 : 1 + len(SEQUENCES[row])]
        np.testing.assert_allclose(vectors, residues, rtol=0, atol=1e-5)
    model = prottrans_jax.load_model(tmp_path / "run")
    ours, theirs = model(tokens), both.apply({"params": params}, tokens)
    for part, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(part.encoded, expected.encoded, atol=1e-5)


def test_a_bert_run_is_loaded_in_the_requested_type(tmp_path):
    save_run(tmp_path / "run", BERT, random_params(bert, BERT))
    encoder = prottrans_jax.load_encoder(tmp_path / "run", dtype="bfloat16")
    assert encoder.module.compute.dtype == jax.numpy.bfloat16
    assert encoder.max_residues == 38
    assert families.family_of_config(encoder.config).name == "bert"
    half = encoder.embed(SEQUENCES)[0]
    whole = prottrans_jax.load_encoder(tmp_path / "run").embed(SEQUENCES)[0]
    np.testing.assert_allclose(half, whole, rtol=0, atol=0.2)
    assert not np.array_equal(half, whole)


def test_a_run_is_read_in_the_type_that_it_computed_in(tmp_path):
    metadata = {"identity": run_identity.identity(model=BERT), "dtype": "bfloat16"}
    with checkpointing.Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(4, {"params": random_params(bert, BERT)}, metadata)
    compute = opening.read(tmp_path).compute
    assert compute.dtype == jax.numpy.bfloat16
    assert compute.param_dtype == np.float32 and not compute.scan_layers
    assert opening.read(tmp_path, dtype="float32").compute.dtype == np.float32


def test_real_forms_give_the_published_outputs(shared):
    """Mesh-TensorFlow's sample is the same model as Hugging Face's."""
    pytest.importorskip("tensorflow")
    expected = np.load(shared / "data/interop/hf_tiny/prot_t5/expected.npz")
    encoder = prottrans_jax.load_encoder(shared / "data/interop/mtf_tiny_prott5")
    mask = expected["attention_mask"].astype(bool)
    hidden = encoder(expected["input_ids"].astype(np.int32), mask)
    np.testing.assert_allclose(
        np.asarray(hidden)[mask],
        expected["encoder_last_hidden_state"][mask],
        rtol=0,
        atol=2e-5,
    )


def test_xlnet_trained_in_both_directions_reads_proteins_forward(tmp_path):
    vectors = []
    for bi_data in (False, True):
        config = xlnet.XLNetConfig(
            vocab_size=37,
            num_layers=2,
            num_heads=3,
            head_dim=4,
            d_model=12,
            d_ff=14,
            attn_type="uni",
            bi_data=bi_data,
        )
        folder = tmp_path / str(bi_data)
        huggingface.write(folder, config, random_params(xlnet, config))
        encoder = prottrans_jax.load_encoder(folder)
        vectors.append(encoder.embed(["MKTAYI", "W", "GG"]))
    for forward, both in zip(*vectors, strict=True):
        np.testing.assert_array_equal(forward, both)


def test_errors_are_those_of_the_reader(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prottrans_jax.load_encoder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for load in (opening.read, prottrans_jax.load_encoder, prottrans_jax.load_model):
        with pytest.raises(FileNotFoundError, match="T5X") as error:
            load(tmp_path / "empty")
        assert str(tmp_path / "empty") in str(error.value)
    save_run(tmp_path / "run", BERT, random_params(bert, BERT))
    weights = max((tmp_path / "run").rglob("d/*"), key=lambda x: x.stat().st_size)
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(manifests.CheckpointError, match=weights.name):
        prottrans_jax.load_encoder(tmp_path / "run")
