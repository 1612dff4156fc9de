"""Proteins: equal to Hugging Face's, independent of batches, within their limits."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import hf_cases
from prottrans_jax.encoders import frozen_models, loading
from prottrans_jax.generation import decoding, generator, prompts, sampling
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import memory_decoding, t5, t5_decoding, transformer_xl, xlnet
from prottrans_jax.proteins import vocabulary as vocabularies

EXPECTED = json.loads((pathlib.Path(__file__).parent / "expected.json").read_text())
COMPUTE = compute_config.ComputeConfig(scan_layers=False)
SIZES = dict(num_layers=2, num_heads=3, head_dim=5, d_model=12, d_ff=17)
FAMILIES = {
    "t5": (t5.T5, t5.T5Config, vocabularies.PROT_T5, {"num_decoder_layers": 2}),
    "xlnet": (xlnet.XLNet, xlnet.XLNetConfig, vocabularies.PROT_XLNET, {}),
    "transformer_xl": (
        transformer_xl.TransformerXL,
        transformer_xl.TransformerXLConfig,
        vocabularies.PROT_TXL,
        {"mem_length": 20},
    ),
}


def make_model(family, **switches):
    model_class, config_class, vocabulary, fields = FAMILIES[family]
    sizes = SIZES | {"vocab_size": vocabulary.size}
    config = config_class(**sizes | fields | switches)
    params = hf_cases.random_params(family, config)
    return frozen_models.Model(
        module=model_class(config, COMPUTE),
        params=jax.tree.map(lambda x: jnp.asarray(0.4 * x), params),
        config=config,
        vocabulary=vocabulary,
        name=family,
        source=pathlib.Path("nowhere"),
    )


def greedy(model, module, start, history, residues, end, num_tokens):
    """Tokens of one row, the end included, as `make_expected.py` has them."""
    allowed = np.zeros(model.config.vocab_size, bool)
    allowed[residues] = True
    rows = decoding.Rows(
        history=jnp.asarray(history, jnp.int32).reshape(1, -1),
        forced=jnp.full((1, num_tokens), sampling.NO_TOKEN),
        min_length=jnp.array([3]),
        max_length=jnp.array([num_tokens]),
        keys=jax.random.split(jax.random.key(0), 1),
        allowed=jnp.asarray(allowed),
        end=jnp.int32(end),
    )
    settings = sampling.Sampling(greedy=True, no_repeat_ngram=3)
    out = decoding.decode(module, settings, model.params, start, rows)
    tokens = out.tokens[0, : out.length[0]].tolist()
    return [*tokens, end] if out.ended[0] else tokens


def test_greedy_t5_is_that_of_hugging_face(shared):
    model = loading.load_model(shared / "data/interop/hf_tiny/prot_t5")
    module = t5_decoding.T5Decoding(model.config, model.module.compute)
    expected = EXPECTED["t5"]
    for ids, tokens in zip(expected["inputs"], expected["outputs"], strict=True):
        padded = jnp.asarray([[*ids, 0, 0]])
        ours = greedy(model, module, (padded,), [], range(3, 23), 1, 24)
        assert ours == tokens
    assert expected["outputs"][0][-1] == 1  # One of the two ends before the maximum.


def continue_greedily(model, module, prompt, history, residues):
    start = jnp.asarray([prompt]), jnp.array([0])
    return greedy(model, module, start, history, residues, sampling.NO_TOKEN, 24)


@pytest.mark.parametrize("attn_type", ["uni", "bi"])
def test_greedy_xlnet_is_that_of_hugging_face(shared, attn_type):
    folder = shared / "data/interop/hf_tiny/prot_xlnet"
    model = loading.load_model(folder, attn_type=attn_type)
    module = memory_decoding.XLNetDecoding(model.config, model.module.compute)
    expected = EXPECTED["xlnet"]
    for prompt, tokens in zip(expected["prompts"], expected[attn_type], strict=True):
        ours = continue_greedily(model, module, prompt, prompt, range(17, 37))
        assert ours == tokens


def test_greedy_transformer_xl_is_that_of_hugging_face(shared):
    # Expected from a model without memories, on whole rows.
    folder = shared / "parity/dev/transfo_xl/lm"
    model = loading.load_model(folder, mem_length=64)
    module = memory_decoding.TransformerXLDecoding(model.config, model.module.compute)
    expected = EXPECTED["transformer_xl"]
    for prompt, tokens in zip(expected["prompts"], expected["outputs"], strict=True):
        ours = continue_greedily(model, module, prompt, prompt, range(3, 23))
        assert ours == tokens


PROMPTS = [prompts.Prompt("a", "MKXA"), prompts.Prompt("b", "MXKTAYIXKQ")]


@pytest.mark.parametrize("family", ["t5", "xlnet", "transformer_xl"])
def test_a_protein_does_not_depend_on_batch_and_number(family):
    model = make_model(family)
    options = generator.Options(length=24, number=3, seed=5)
    once = generator.generate(model, PROMPTS, options)
    assert len({protein.sequence for protein in once}) == 6
    fewer = dataclasses.replace(options, batch_size=3, number=2)
    again = generator.generate(model, PROMPTS, fewer)
    assert [x.sequence for x in again] == [x.sequence for x in once if x.number < 3]


def test_a_protein_begins_the_same_in_a_longer_bucket():
    model = make_model("xlnet")
    options = generator.Options(length=24, number=2, seed=5)
    short = generator.generate(model, PROMPTS, options)
    long = generator.generate(model, PROMPTS, dataclasses.replace(options, length=80))
    for first, second in zip(short, long, strict=True):
        assert second.sequence.startswith(first.sequence)


def test_log_likelihood_is_that_of_the_whole_target():
    model = make_model("t5")
    options = generator.Options(seed=1, choice=sampling.Sampling(top_k=3))
    (protein,) = generator.generate(model, [prompts.Prompt("a", "MXXAXK")], options)
    # M <extra_id_0> <extra_id_0> A <extra_id_0> K </s>
    inputs = jnp.array([[19, 127, 127, 3, 127, 14, 1]])
    targets = model.vocabulary.encode(protein.sequence)
    logits = model(inputs, jnp.asarray([[0, *targets[:-1]]]))[0]
    log_probs = jax.nn.log_softmax(logits)[np.arange(6), targets]
    expected = log_probs[jnp.array([1, 2, 4])].sum()
    assert protein.log_likelihood == pytest.approx(float(expected), abs=1e-5)
    assert protein.num_sampled == 3


def test_t5_keeps_given_residues_and_masks_up_to_the_length():
    (protein,) = generator.generate(
        make_model("t5"), [prompts.Prompt("a", "MKXA")], generator.Options(length=9)
    )
    assert len(protein.sequence) == 9
    assert protein.sequence[:2] == "MK" and protein.sequence[3] == "A"


def test_rows_end_independently_between_the_lengths():
    options = generator.Options(number=12, length=60, min_length=6)
    proteins = generator.generate(
        make_model("transformer_xl"), [prompts.Prompt("a", "MKT")], options
    )
    lengths = {len(protein.sequence) for protein in proteins}
    assert len(lengths) > 3 and min(lengths) >= 6 and max(lengths) <= 60
    for protein in proteins:
        assert protein.ended == (len(protein.sequence) < 60)
        assert protein.num_sampled == len(protein.sequence) - 3 + protein.ended


def test_only_standard_residues_unless_others_are_allowed():
    options = generator.Options(number=6, rewrite=True, length=40)
    model = make_model("t5")
    for allow, expected in (("", False), ("XB", True)):
        proteins = generator.generate(
            model,
            [prompts.Prompt("a", "M")],
            dataclasses.replace(options, allow=allow),
        )
        letters = set("".join(protein.sequence for protein in proteins))
        assert letters <= set(vocabularies.STANDARD + allow)
        assert bool(letters & set("XB")) is expected


@pytest.mark.parametrize(
    ("family", "residues", "options", "words"),
    [
        ("t5", "MKT", {}, "no residue is X"),
        ("t5", "MKT", {"length": 2}, "more than --length=2"),
        ("t5", "MX", {"allow": "J"}, "'J' is not a letter"),
        ("xlnet", "", {}, "--prompt M"),
        ("xlnet", "M", {"min_length": 5}, "never ends a protein"),
        ("xlnet", "M", {"rewrite": True}, "only a T5 rewrites"),
        ("transformer_xl", "MKT", {"length": 3}, "leaves none to generate"),
    ],
)
def test_what_a_model_cannot_generate_is_refused(family, residues, options, words):
    start = [prompts.Prompt("a", residues)]
    with pytest.raises(ValueError, match=words):
        generator.generate(make_model(family), start, generator.Options(**options))


def test_an_encoder_without_decoder_is_refused():
    model = make_model("t5", num_decoder_layers=0)
    with pytest.raises(ValueError, match="export --part all"):
        generator.generate(model, PROMPTS, generator.Options())
