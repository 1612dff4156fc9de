"""XLNet against Hugging Face's numbers: stored in ../shared, and computed anew."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import losses
from prottrans_jax.interop import hf_xlnet, safetensors
from prottrans_jax.models import xlnet

MAX_ABS = 2e-5
RELATIVE = 1e-5  # of losses, and of gradients to the largest of their array
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])


def load(folder, **overrides):
    attributes = json.loads((folder / "config.json").read_text())
    config = hf_xlnet.config_from_hf(attributes, **overrides)
    checkpoint = safetensors.load(folder / "model.safetensors")
    return config, hf_xlnet.params_from_hf(checkpoint, config)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, inputs):
    """Hidden states [layers + 1, batch, length, d_model], logits, memories."""
    out, variables = xlnet.XLNet(config).apply(
        {"params": params},
        tokens,
        deterministic=True,
        mutable="intermediates",
        **inputs,
    )
    tree = variables["intermediates"]["encoder"]
    if config.scan_layers:
        states = tree["layers"]["input"][0]
    else:
        layers = range(config.num_layers)
        states = jnp.stack([tree[f"layers_{i}"]["input"][0] for i in layers])
    return jnp.concatenate([states, tree["output"][0][None]]), *out


def assert_close(ours, theirs, **options):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=MAX_ABS, **options)


@SCAN
@pytest.mark.parametrize("name", ["forward", "forward_segments"])
def test_hidden_states_and_logits_with_left_padding(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "xlnet"
    config, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    inputs = {"segment_ids": case["in_attention_mask"].astype(np.int32)}
    if "in_token_type_ids" in case:
        inputs["token_types"] = case["in_token_type_ids"]
    states, logits, _ = run(config, params, case["in_input_ids"], inputs)
    real = case["in_attention_mask"] == 1
    assert not real[2:, 0].any()  # padding on the left
    assert_close(states[:, real], case["out_hidden_states"][:, real])
    assert_close(logits[real], case["out_logits"][real])


def test_prot_xlnet_hidden_states_and_logits(shared):
    folder = shared / "data" / "interop" / "hf_tiny" / "prot_xlnet"
    config, params = load(folder)
    case = np.load(folder / "expected.npz")
    segments = case["attention_mask"].astype(np.int32)
    states, logits, _ = run(
        config, params, case["input_ids"], {"segment_ids": segments}
    )
    real = segments == 1
    for layer, state in enumerate(states):
        assert_close(state[real], case[f"hidden_{layer}"][real])
    assert_close(logits[real], case["logits"][real])
    _, logits, _ = run(
        config,
        params,
        case["input_ids"],
        {
            "segment_ids": segments,
            "perm_mask": case["perm_mask"],
            "target_mapping": case["target_mapping"],
        },
    )
    assert_close(logits, case["perm_logits"])


def test_memories_over_three_calls(shared):
    folder = shared / "parity" / "dev" / "xlnet"
    config, params = load(folder / "lm")
    case = np.load(folder / "case_mems.npz")
    memories = None
    first, second = case["in_input_ids_1"], case["in_input_ids_2"]
    for number, tokens in enumerate((first, second, first), 1):
        states, logits, memories = run(config, params, tokens, {"memories": memories})
        assert_close(logits, case[f"out_logits_{number}"])
        if number < 3:
            # [layers, mem_len, batch, d_model]
            theirs = np.swapaxes(case[f"out_mems_{number}"], 1, 2)
            assert_close(memories, theirs)
        if number == 2:
            assert_close(states, case["out_hidden_states_2"])


@SCAN
@pytest.mark.parametrize("name", ["plm_loss", "plm_mems_loss"])
def test_permutation_loss_and_gradients(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "xlnet"
    config, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    inputs = {
        "perm_mask": case["in_perm_mask"],
        "target_mapping": case["in_target_mapping"],
    }
    if "in_attention_mask" in case:
        inputs["segment_ids"] = case["in_attention_mask"].astype(np.int32)
    if "in_input_ids_1" in case:
        _, _, memories = run(config, params, case["in_input_ids_1"], {})
        inputs["memories"] = memories

    @jax.jit
    def loss(params):
        logits, memories = xlnet.XLNet(config).apply(
            {"params": params}, case["in_input_ids"], deterministic=True, **inputs
        )
        labels = case["in_labels"]
        nll = losses.softmax_cross_entropy(logits, labels).nll
        weights = labels != -100
        return jnp.sum(nll * weights) / jnp.sum(weights), (logits, memories)

    (value, (logits, memories)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, case["out_loss"], rtol=RELATIVE)
    assert_close(logits, case["out_logits"])
    if "out_mems" in case:
        assert_close(memories, np.swapaxes(case["out_mems"], 1, 2))
    if "out_g_last" in case:
        states, _, _ = run(config, params, case["in_input_ids"], inputs)
        length = case["in_input_ids"].shape[1]
        assert_close(states[-1, :, length:], case["out_g_last"])
    check_grads(
        hf_xlnet.params_to_hf(grads, config), np.load(folder / f"grads_{name}.npz")
    )


def check_grads(ours, theirs):
    # Theirs has none for what a call without token types does not use.
    unused = {name for name in ours if "r_s_bias" in name or "seg_embed" in name}
    assert set(ours) - unused == set(theirs) - unused
    for name, expected in ours.items():
        expected = theirs[name] if name in theirs else np.zeros_like(expected)
        limit = RELATIVE * np.abs(expected).max()
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=limit, err_msg=name
        )
