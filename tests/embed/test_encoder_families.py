"""Encoders of every family agree with Hugging Face."""

import jax
import numpy as np
import pytest

from cases import embed_cases
import prottrans_jax
from prottrans_jax.embed import forward, layerwise
from prottrans_jax.interop import huggingface, vocabularies
from prottrans_jax.models import xlnet
from prottrans_jax.proteins import vocabulary

FAMILIES = [
    "prot_bert",
    "prot_albert",
    "prot_electra_discriminator",
    "prot_electra_generator",
    "prot_xlnet",
    "prot_t5",
]


def load(shared, name):
    folder = shared / "data/interop/hf_tiny" / name
    expected = dict(np.load(folder / "expected.npz"))
    if "encoder_hidden_0" in expected:
        expected |= {f"hidden_{i}": expected[f"encoder_hidden_{i}"] for i in range(4)}
    return prottrans_jax.load_encoder(folder, dtype="float32"), expected


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_by_layer_gives_every_hidden_state(shared, name):
    encoder, expected = load(shared, name)
    tokens = expected["input_ids"].astype(np.int32)
    mask = expected["attention_mask"].astype(bool)
    stack = layerwise.find_stack(encoder.module)
    assert stack is not None and len(stack.paths) == encoder.num_layers
    numbers = range(encoder.num_layers)
    last, kept = layerwise.run_layers(
        stack, encoder.params, tokens, mask, keep=frozenset(numbers)
    )
    last = layerwise.after_layers(
        stack,
        layerwise.outside(stack, encoder.params),
        *jax.device_put((tokens, mask)),
        last,
    )
    every = forward.encode(
        encoder.module,
        encoder.params,
        tokens,
        mask,
        forward.parse_layers("all", encoder.num_layers),
    )
    for number, state in enumerate([*(kept[i] for i in numbers), last]):
        reference = expected[f"hidden_{number}"][mask]
        limit = max(2e-5, 4e-6 * np.abs(reference).max())
        np.testing.assert_allclose(
            np.asarray(state)[mask], reference, rtol=0, atol=limit
        )
        np.testing.assert_allclose(
            np.asarray(every[number])[mask], reference, rtol=0, atol=limit
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_weights_give_nearly_the_same_vectors(shared, name):
    _, expected = load(shared, name)
    folder = shared / "data/interop/hf_tiny" / name
    encoder = prottrans_jax.load_encoder(folder, dtype="int8")
    assert encoder.dtype == "int8"
    tokens = expected["input_ids"].astype(np.int32)
    mask = expected["attention_mask"].astype(bool)
    hidden = np.asarray(encoder(tokens, mask), np.float32)[mask]
    reference = expected[f"hidden_{encoder.num_layers}"][mask]
    norms = np.linalg.norm(hidden, axis=-1) * np.linalg.norm(reference, axis=-1)
    cosines = (hidden * reference).sum(axis=-1) / norms
    # At 1,024 inputs 0.9995 was measured; these have 32, whose roundings average less.
    assert cosines.min() >= 0.99
    program = str(jax.make_jaxpr(encoder)(tokens, mask))
    assert program.count("preferred_element_type=int32") >= 4 * encoder.num_layers


def test_special_tokens_are_set_and_never_counted(shared):
    encoder, expected = load(shared, "prot_bert")
    mask = expected["attention_mask"].astype(bool)
    tokens, ours = encoder.tokenize(
        [encoder.vocabulary.decode(row) for row in expected["input_ids"]]
    )
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(ours, mask)
    sequences = [encoder.vocabulary.decode(row) for row in tokens]
    hidden = expected[f"hidden_{encoder.num_layers}"]
    vectors = encoder.embed(sequences)
    pooled = encoder.embed(sequences, pool="mean")
    first = encoder.embed(sequences, pool="cls")
    for row, sequence in enumerate(sequences):
        residues = hidden[row, 1 : 1 + len(sequence)]  # Between [CLS] and [SEP].
        np.testing.assert_allclose(vectors[row], residues, rtol=0, atol=2e-5)
        np.testing.assert_allclose(pooled[row], residues.mean(axis=0), atol=2e-5)
        np.testing.assert_allclose(first[row], hidden[row, 0], atol=2e-5)


def test_proteins_beyond_the_position_table_are_named(shared, tmp_path):
    encoder, _ = load(shared, "prot_bert")
    assert encoder.max_residues == 126
    source = tmp_path / "x.fasta"
    source.write_text(f">A\n{'MK' * 63}\n>B\n{'MK' * 64}\n")
    with pytest.raises(ValueError, match="'B' has 128 residues, the model has posit"):
        encoder.embed_fasta(source, tmp_path / "out.h5")
    report = encoder.embed_fasta(source, tmp_path / "out.h5", long="skip")
    assert [s.name for s in report.skipped] == ["B"] and report.embedded == 1
    assert "126" in report.skipped[0].detail
    report = encoder.embed_fasta(
        source, tmp_path / "cut.h5", max_length=100, long="chunk"
    )
    assert report.embedded == 2 and not report.skipped


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prot_t5", "T5EncoderModel"),
        ("prot_bert", "BertModel"),
        ("prot_albert", "AlbertModel"),
    ],
)
def test_attention_maps_are_those_of_hugging_face(shared, name, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder, _ = load(shared, name)
    sequence = "MKTAYIAKQRLLKWWPG"
    tokens, _ = encoder.tokenize([sequence])
    theirs = getattr(transformers, model).from_pretrained(
        encoder.source, attn_implementation="eager"
    )
    with torch.no_grad():
        out = theirs.eval()(torch.tensor(tokens).long(), output_attentions=True)
    reference = torch.cat(out.attentions).numpy()
    ours = encoder.attention_maps(sequence)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


def test_attention_maps_of_other_kinds_are_refused(shared):
    encoder, _ = load(shared, "prot_xlnet")
    with pytest.raises(ValueError, match="XLNetConfig"):
        encoder.attention_maps("MKTAY")


def tiny_xlnet(folder, name="xlnet"):
    config = xlnet.XLNetConfig(
        vocab_size=37, num_layers=2, num_heads=3, head_dim=4, d_model=12, d_ff=14
    )
    params = jax.tree.map(np.asarray, xlnet.init_params(config, jax.random.key(4)))
    huggingface.write(folder / name, config, params)
    vocabularies.write(folder / name, vocabulary.PROT_XLNET, (), (4, 3))
    return prottrans_jax.load_encoder(folder / name, dtype="float32")


def test_the_cls_of_xlnet_is_its_last_token(tmp_path):
    encoder = tiny_xlnet(tmp_path)
    sequences = ["MKTAYIAK", "WYV"]
    tokens, mask = encoder.tokenize(sequences)
    hidden = np.asarray(encoder(tokens, mask))
    last = mask.sum(axis=1) - 1
    assert (tokens[[0, 1], last] == vocabulary.PROT_XLNET.cls_id).all()
    pooled = encoder.embed(sequences, pool="cls")
    np.testing.assert_allclose(pooled, hidden[[0, 1], last], rtol=0, atol=1e-5)


def test_a_model_without_cls_cannot_be_pooled_by_it(tmp_path):
    folder = embed_cases.make_model(tmp_path / "t5", seed=1)
    encoder = prottrans_jax.load_encoder(folder, dtype="float32")
    with pytest.raises(ValueError, match=r"no \[CLS\] token"):
        encoder.embed(["MKT"], pool="cls")
