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

from cases.hf_cases import SIZES, assert_same, random_params
from prottrans_jax.checkpoints import run_identity
from prottrans_jax.interop import (
    hf_transformer_xl,
    huggingface,
    layer_stacks,
    safetensors,
)
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import relative_attention
from prottrans_jax.models import transformer_xl
from prottrans_jax.objectives import losses

MAX_ABS = 2e-5
RELATIVE = 1e-5  # of losses, and of gradients to the largest of their array
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])


def load(folder, **options):
    compute = compute_config.ComputeConfig(**options)
    attributes = json.loads((folder / "config.json").read_text())
    config = hf_transformer_xl.config_from_hf(attributes)
    checkpoint = safetensors.load(folder / "model.safetensors")
    params = layer_stacks.convert(
        hf_transformer_xl.params_from_hf(checkpoint, config),
        dtype=compute.param_dtype,
        stacked=compute.scan_layers,
    )
    return transformer_xl.TransformerXL(config, compute), params


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens, memories):
    """Hidden states [layers + 1, batch, length, d_model], logits, memories."""
    out, variables = model.apply(
        {"params": params},
        tokens,
        memories=memories,
        deterministic=True,
        mutable="intermediates",
    )
    tree = variables["intermediates"]["decoder"]
    if model.compute.scan_layers:
        states = tree["layers"]["input"][0]
    else:
        layers = range(model.config.num_layers)
        states = jnp.stack([tree[f"layers_{i}"]["input"][0] for i in layers])
    return jnp.concatenate([states, tree["output"][0][None]]), *out


def no_memories(model, batch):
    """Hugging Face begins with zeros, which are attended to."""
    return jnp.zeros(
        (model.config.num_layers, batch, model.config.mem_length, model.config.d_model)
    )


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=MAX_ABS)


@SCAN
def test_hidden_states_log_probabilities_and_memories(shared, scan_layers):
    folder = shared / "parity" / "dev" / "transfo_xl"
    model, params = load(folder / "lm", scan_layers=scan_layers)
    checkpoint = safetensors.load(folder / "lm" / "model.safetensors")
    del checkpoint["transformer.pos_emb.inv_freq"]  # a buffer
    again = hf_transformer_xl.params_to_hf(params, model.config)
    assert set(again) == set(checkpoint)
    assert all(np.array_equal(x, checkpoint[name]) for name, x in again.items())
    case = np.load(folder / "case_mems.npz")
    memories = no_memories(model, 3)
    for call in "123":
        tokens = case[f"in_input_ids_{call}"]
        states, logits, memories = run(model, params, tokens, memories)
        assert_close(states, case[f"out_hidden_states_{call}"])
        assert_close(jax.nn.log_softmax(logits), case[f"out_log_probs_{call}"])
        # [layers, mem_len, batch, d_model]
        assert_close(memories, np.swapaxes(case[f"out_mems_{call}"], 1, 2))


@SCAN
@pytest.mark.parametrize("name", ["lm_loss", "lm_loss_nomems"])
def test_loss_and_gradients(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "transfo_xl"
    model, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    memories, suffix = no_memories(model, 3), ""
    if "in_input_ids_1" in case:
        suffix = "_2"
        _, _, memories = run(model, params, case["in_input_ids_1"], memories)
    tokens, labels = case[f"in_input_ids{suffix}"], case[f"in_labels{suffix}"]
    # Theirs shifts inside: position t is scored on the label of t + 1.
    targets, weights = labels[:, 1:], labels[:, 1:] != -100
    tokens, targets = jax.device_put((tokens, targets))

    @jax.jit
    def loss(params):
        logits, _ = model.apply(
            {"params": params}, tokens, memories=memories, deterministic=True
        )
        nll = losses.softmax_cross_entropy(logits[:, :-1], targets).nll
        return jnp.sum(nll * weights) / jnp.sum(weights), nll

    (value, nll), grads = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, case["out_loss"], rtol=RELATIVE)
    assert_close(nll[weights], case["out_losses"][weights])
    ours = hf_transformer_xl.params_to_hf(grads, model.config)
    theirs = np.load(folder / f"grads_{name}.npz")
    assert set(ours) == set(theirs)
    for parameter in theirs:
        limit = RELATIVE * np.abs(theirs[parameter]).max()
        np.testing.assert_allclose(
            ours[parameter], theirs[parameter], rtol=0, atol=limit, err_msg=parameter
        )


# Below: without ../shared.


@pytest.mark.parametrize("untie_r", [True, False])
def test_buffers_and_second_copies_of_shared_biases_are_accepted(untie_r):
    attributes = SIZES["transformer_xl"] | {"untie_r": untie_r}
    config = hf_transformer_xl.config_from_hf(attributes)
    params = random_params("transformer_xl", config)
    theirs = hf_transformer_xl.params_to_hf(params, config)
    assert ("transformer.r_w_bias" in theirs) == config.shared_biases
    theirs["transformer.pos_emb.inv_freq"] = np.ones(6)
    if config.shared_biases:
        copy = theirs["transformer.r_w_bias"]
        theirs["transformer.layers.0.dec_attn.r_w_bias"] = copy
    assert_same(hf_transformer_xl.params_from_hf(theirs, config), params)


def test_missing_fields_get_their_defaults():
    given = {"cutoffs": [], "div_val": 1, "vocab_size": 23}
    config = hf_transformer_xl.config_from_hf(given)
    assert (config.num_layers, config.d_model, config.mem_length) == (18, 1024, 1600)
    assert config.same_length and config.clamp_length == 1000


def test_default_of_an_adaptive_softmax_is_refused():
    with pytest.raises(ValueError, match=r"cutoffs=\[20000, 40000, 200000\]"):
        hf_transformer_xl.config_from_hf({"div_val": 1})


TINY = transformer_xl.TransformerXLConfig(
    vocab_size=31,
    num_layers=1,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    mem_length=6,
)


def half_precision_folder(folder):
    """A folder as transformers writes it after `model.half()`, its buffer included."""
    params = transformer_xl.init_params(TINY, jax.random.key(2))
    huggingface.write(folder, TINY, jax.tree.map(np.asarray, params), dtype="float16")
    arrays = dict(safetensors.load(folder / "model.safetensors"))
    exact = 10000.0 ** (-np.arange(0, 10, 2) / 10)
    arrays["transformer.pos_emb.inv_freq"] = exact.astype(np.float16)
    safetensors.save(folder / "model.safetensors", arrays)
    return arrays


def test_stored_frequencies_of_half_precision_are_used(tmp_path):
    half_precision_folder(tmp_path)
    config = huggingface.read(tmp_path).config
    # 10000 ** -0.2, -0.4 ... as float16 holds them.
    by_hand = [1.0, 0.1584472656, 0.0251159668, 0.0039825439, 0.0006308556]
    np.testing.assert_allclose(config.frequencies, by_hand, rtol=1e-6)
    encoding = relative_attention.position_encoding(
        np.array([300, 2]), 10, config.frequencies
    )
    angles = np.outer([300, 2], by_hand)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(encoding, expected, rtol=0, atol=1e-5)
    exact = relative_attention.position_encoding(np.array([300, 2]), 10)
    assert np.abs(exact - encoding).max() > 1e-3


def test_stored_frequencies_are_written_back_bit_by_bit(tmp_path):
    arrays = half_precision_folder(tmp_path / "in")
    found = huggingface.read(tmp_path / "in")
    huggingface.write(tmp_path / "out", found.config, found.params)
    again = safetensors.load(tmp_path / "out" / "model.safetensors")
    name = "transformer.pos_emb.inv_freq"
    assert again[name].dtype == np.float16
    assert np.array_equal(again[name], arrays[name])
    assert huggingface.read(tmp_path / "out").config == found.config


def test_exact_frequencies_leave_the_configuration_as_it_was(tmp_path):
    arrays = half_precision_folder(tmp_path)
    exact = 10000.0 ** (-np.arange(0, 10, 2, dtype=np.float32) / 10)
    arrays["transformer.pos_emb.inv_freq"] = exact * np.float32(1 + 1e-7)
    safetensors.save(tmp_path / "model.safetensors", arrays)
    config = huggingface.read(tmp_path).config
    assert config.frequencies is None
    assert "frequencies" not in run_identity.identity(m=config)["m"]
