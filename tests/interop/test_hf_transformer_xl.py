"""Transformer-XL against Hugging Face's numbers, stored in ../shared.

transformers 5 has no such class any more; other options are held against an independent
float64 implementation in tests/models/test_transformer_xl.py.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import losses
from prottrans_jax.interop import hf_transformer_xl, safetensors
from prottrans_jax.models import transformer_xl

MAX_ABS = 2e-5
RELATIVE = 1e-5  # of losses, and of gradients to the largest of their array
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])


def load(folder, **overrides):
    attributes = json.loads((folder / "config.json").read_text())
    config = hf_transformer_xl.config_from_hf(attributes, **overrides)
    checkpoint = safetensors.load(folder / "model.safetensors")
    return config, hf_transformer_xl.params_from_hf(checkpoint, config)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, memories):
    """Hidden states [layers + 1, batch, length, d_model], logits, memories."""
    out, variables = transformer_xl.TransformerXL(config).apply(
        {"params": params},
        tokens,
        memories=memories,
        deterministic=True,
        mutable="intermediates",
    )
    tree = variables["intermediates"]["decoder"]
    if config.scan_layers:
        states = tree["layers"]["input"][0]
    else:
        layers = range(config.num_layers)
        states = jnp.stack([tree[f"layers_{i}"]["input"][0] for i in layers])
    return jnp.concatenate([states, tree["output"][0][None]]), *out


def no_memories(config, batch):
    """Hugging Face begins with zeros, which are attended to."""
    return jnp.zeros((config.num_layers, batch, config.mem_length, config.d_model))


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=MAX_ABS)


@SCAN
def test_hidden_states_log_probabilities_and_memories(shared, scan_layers):
    folder = shared / "parity" / "dev" / "transfo_xl"
    config, params = load(folder / "lm", scan_layers=scan_layers)
    checkpoint = safetensors.load(folder / "lm" / "model.safetensors")
    del checkpoint["transformer.pos_emb.inv_freq"]  # a buffer
    again = hf_transformer_xl.params_to_hf(params, config)
    assert set(again) == set(checkpoint)
    assert all(np.array_equal(x, checkpoint[name]) for name, x in again.items())
    case = np.load(folder / "case_mems.npz")
    memories = no_memories(config, 3)
    for call in "123":
        tokens = case[f"in_input_ids_{call}"]
        states, logits, memories = run(config, params, tokens, memories)
        assert_close(states, case[f"out_hidden_states_{call}"])
        assert_close(jax.nn.log_softmax(logits), case[f"out_log_probs_{call}"])
        # [layers, mem_len, batch, d_model]
        assert_close(memories, np.swapaxes(case[f"out_mems_{call}"], 1, 2))


@SCAN
@pytest.mark.parametrize("name", ["lm_loss", "lm_loss_nomems"])
def test_loss_and_gradients(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "transfo_xl"
    config, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    memories, suffix = no_memories(config, 3), ""
    if "in_input_ids_1" in case:
        suffix = "_2"
        _, _, memories = run(config, params, case["in_input_ids_1"], memories)
    tokens, labels = case[f"in_input_ids{suffix}"], case[f"in_labels{suffix}"]
    # Theirs shifts inside: position t is scored on the label of t + 1.
    targets, weights = labels[:, 1:], labels[:, 1:] != -100

    @jax.jit
    def loss(params):
        logits, _ = transformer_xl.TransformerXL(config).apply(
            {"params": params}, tokens, memories=memories, deterministic=True
        )
        nll = losses.softmax_cross_entropy(logits[:, :-1], targets).nll
        return jnp.sum(nll * weights) / jnp.sum(weights), nll

    (value, nll), grads = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, case["out_loss"], rtol=RELATIVE)
    assert_close(nll[weights], case["out_losses"][weights])
    ours = hf_transformer_xl.params_to_hf(grads, config)
    theirs = np.load(folder / f"grads_{name}.npz")
    assert set(ours) == set(theirs)
    for parameter in theirs:
        limit = RELATIVE * np.abs(theirs[parameter]).max()
        np.testing.assert_allclose(
            ours[parameter], theirs[parameter], rtol=0, atol=limit, err_msg=parameter
        )


# Below: without ../shared.

SIZES = dict(
    vocab_size=23,
    n_layer=2,
    n_head=3,
    d_head=5,
    d_model=12,
    d_embed=12,
    d_inner=17,
    mem_len=6,
    cutoffs=[],
    div_val=1,
)
COMBINATIONS = [
    {},
    {"untie_r": False, "pre_lnorm": True},
    {"same_length": False, "clamp_len": -1, "dropatt": 0.2},
]


@pytest.mark.parametrize("attributes", COMBINATIONS, ids=str)
@pytest.mark.parametrize("options", [{}, {"lm_head": False, "scan_layers": False}])
def test_there_and_back_is_the_identity(attributes, options):
    config = hf_transformer_xl.config_from_hf(SIZES | attributes, **options)
    shapes = jax.eval_shape(
        lambda: transformer_xl.init_params(config, jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    theirs = hf_transformer_xl.params_to_hf(params, config)
    prefix = "transformer." if config.lm_head else ""
    name = f"{prefix}layers.1.dec_attn.qkv_net.weight"
    assert theirs[name].shape == (3 * 15, 12)
    assert (f"{prefix}r_w_bias" in theirs) == config.shared_biases
    assert hf_transformer_xl.fit_config(config, frozenset(theirs)) == config
    # What theirs holds besides: a buffer, and the shared biases once for every layer.
    theirs[f"{prefix}pos_emb.inv_freq"] = np.ones(6)
    if config.shared_biases:
        theirs[f"{prefix}layers.0.dec_attn.r_w_bias"] = theirs[f"{prefix}r_w_bias"]
    again = hf_transformer_xl.params_from_hf(theirs, config)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    config = hf_transformer_xl.config_from_hf(SIZES | attributes)
    attributes = hf_transformer_xl.config_to_hf(config)
    assert hf_transformer_xl.config_from_hf(attributes) == config


def test_missing_fields_get_their_defaults():
    given = {"cutoffs": [], "div_val": 1, "vocab_size": 23}
    config = hf_transformer_xl.config_from_hf(given)
    assert (config.num_layers, config.d_model, config.mem_length) == (18, 1024, 1600)
    assert config.same_length and config.clamp_length == 1000


def test_attributes_that_are_not_honoured_are_refused_by_name():
    for attributes, message in (
        ({"rope_theta": 10000}, "rope_theta=10000"),
        ({"cutoffs": [5]}, r"cutoffs=\[5\].*adaptive"),
        ({"div_val": 2}, "div_val=2"),
        ({"d_embed": 6}, "d_embed=6"),
        ({"attn_type": 2}, "attn_type=2"),
        ({"sample_softmax": 10}, "sample_softmax=10"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"model_type": "xlnet"}, "'xlnet'"),
    ):
        with pytest.raises(ValueError, match=message):
            hf_transformer_xl.config_from_hf(SIZES | attributes)
    with pytest.raises(ValueError, match=r"cutoffs=\[20000, 40000, 200000\]"):
        hf_transformer_xl.config_from_hf({"div_val": 1})
