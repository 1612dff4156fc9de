"""T5 against Hugging Face's numbers, stored in ../shared (torch, float32)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import hf_t5, safetensors
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising

VARIANTS = {
    "scanned": {"scan_layers": True},
    "unrolled": {"scan_layers": False},
    "blockwise": {"attention": "blockwise", "attention_block_size": 64},
}
MAX_ABS = 2e-5
LOSS_RELATIVE = 1e-6


@pytest.fixture(params=VARIANTS)
def variant(request) -> dict:
    return VARIANTS[request.param]


def load(folder, **overrides):
    attributes = json.loads((folder / "config.json").read_text())
    config = hf_t5.config_from_hf(attributes, **overrides)
    checkpoint = safetensors.load(folder / "model.safetensors")
    return config, hf_t5.params_from_hf(checkpoint, config)


def hidden_states(config, intermediates, side, last):
    """[layers + 1, batch, length, d_model], as Hugging Face stacks them."""
    tree = intermediates[side]
    if config.scan_layers:
        inputs = list(tree["layers"]["input"][0])
    else:
        num_layers = sum(name.startswith("layers_") for name in tree)
        inputs = [tree[f"layers_{i}"]["input"][0] for i in range(num_layers)]
    return np.stack([*inputs, last])


def run(config, params, batch):
    """Hidden states of both stacks, and logits."""
    logits, variables = jax.jit(
        lambda params: t5.T5(config).apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            deterministic=True,
            mutable="intermediates",
        )
    )(params)
    tree = variables["intermediates"]
    encoder = hidden_states(config, tree, "encoder", tree["encoder"]["output"][0])
    decoder = hidden_states(config, tree, "decoder", tree["decoder"]["output"][0])
    return encoder, decoder, logits


def make_batch(input_ids, attention_mask, labels):
    weights = labels != -100
    targets = np.where(weights, labels, 0)
    return {
        "encoder_input_tokens": jnp.asarray(input_ids, jnp.int32),
        "encoder_segment_ids": jnp.asarray(attention_mask, jnp.int32),
        "decoder_target_tokens": jnp.asarray(targets, jnp.int32),
        "decoder_input_tokens": jnp.pad(
            jnp.asarray(targets, jnp.int32)[:, :-1], ((0, 0), (1, 0))
        ),
        # Hugging Face masks nothing in the decoder.
        "decoder_segment_ids": jnp.ones(labels.shape, jnp.int32),
        "decoder_loss_weights": jnp.asarray(weights, jnp.float32),
        "decoder_corrupted": jnp.zeros(labels.shape, jnp.int32),
    }


def loss_and_grads(config, params, batch):
    objective = denoising.Denoising(t5.T5(config))
    normalizers = objective.normalizers(batch)
    rng = jax.random.key(0)

    def loss(params):
        return objective(params, batch, normalizers, (), rng, train=False)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


def test_v10_hidden_states_logits_loss_and_gradients(shared, variant):
    folder = shared / "parity" / "dev" / "t5"
    config, params = load(folder / "v10", **variant)
    case = np.load(folder / "case_v10_loss.npz")
    encoder_case = np.load(folder / "case_v10_encoder.npz")
    batch = make_batch(
        case["in_input_ids"], case["in_attention_mask"], case["in_labels"]
    )
    assert np.array_equal(case["in_input_ids"], encoder_case["in_input_ids"])

    encoder, decoder, logits = run(config, params, batch)
    real = case["in_attention_mask"].astype(bool)
    np.testing.assert_allclose(
        encoder[:, real],
        encoder_case["out_hidden_states"][:, real],
        rtol=0,
        atol=MAX_ABS,
    )
    np.testing.assert_allclose(
        decoder, case["out_decoder_hidden_states"], rtol=0, atol=MAX_ABS
    )
    np.testing.assert_allclose(logits, case["out_logits"], rtol=0, atol=MAX_ABS)

    loss, grads = loss_and_grads(config, params, batch)
    np.testing.assert_allclose(loss, case["out_loss"], rtol=LOSS_RELATIVE)
    ours = hf_t5.params_to_hf(grads, config)
    theirs = np.load(folder / "grads_v10_loss.npz")
    assert set(ours) == set(theirs)
    for name in theirs:
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=0, atol=2e-5 * scale, err_msg=name
        )


def test_prot_t5_hidden_states_logits_and_loss(shared, variant):
    folder = shared / "data" / "interop" / "hf_tiny" / "prot_t5"
    config, params = load(folder, **variant)
    expected = np.load(folder / "expected.npz")
    batch = make_batch(
        expected["input_ids"], expected["attention_mask"], expected["labels"]
    )
    assert np.array_equal(batch["decoder_input_tokens"], expected["decoder_input_ids"])
    encoder, decoder, logits = run(config, params, batch)
    real = expected["attention_mask"].astype(bool)
    for layer in range(config.num_layers + 1):
        np.testing.assert_allclose(
            encoder[layer][real],
            expected[f"encoder_hidden_{layer}"][real],
            rtol=0,
            atol=MAX_ABS,
        )
        np.testing.assert_allclose(
            decoder[layer], expected[f"decoder_hidden_{layer}"], rtol=0, atol=MAX_ABS
        )
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=MAX_ABS)
    loss, _ = loss_and_grads(config, params, batch)
    np.testing.assert_allclose(loss, expected["loss"], rtol=LOSS_RELATIVE)
