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
