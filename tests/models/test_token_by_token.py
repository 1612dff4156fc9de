"""Logits of one token after another are those of the whole row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import hf_cases
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import (
    memory_decoding,
    t5,
    t5_decoding,
    transformer_xl,
    xlnet,
)

COMPUTE = compute_config.ComputeConfig(scan_layers=False)
SIZES = dict(vocab_size=23, num_layers=2, num_heads=3, head_dim=5, d_model=12, d_ff=17)
NEW_TOKENS = 4


def random_params(family, config):
    return jax.tree.map(lambda x: 0.4 * x, hf_cases.random_params(family, config))


def all_logits(module, params, start, slots, tokens):
    """Logits before each of `tokens` [batch, length], and after the last."""
    variables = {"params": params}

    @jax.jit
    def begin(*start):
        return module.apply(variables, *start, slots, method="start")

    @jax.jit
    def step(token, cache):
        return module.apply(variables, token, cache, method="step")

    logits, cache = begin(*start)
    result = [logits]
    for column in tokens.T:
        logits, cache = step(jnp.asarray(column), cache)
        result.append(logits)
    return np.stack(result, axis=1)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {
            "tie_embeddings": False,
            "mlp_activations": ("gelu", "linear"),
            "share_relative_bias": False,
            "relative_max_distance": 20,
        },
    ],
    ids=["v1.0", "v1.1-bias-per-layer"],
)
def test_t5_steps_equal_the_whole_target(switches):
    config = t5.T5Config(num_decoder_layers=3, **SIZES | switches)
    params = random_params("t5", config)
    rng = np.random.default_rng(1)
    inputs = rng.integers(1, 23, (2, 7))
    inputs[1, 5:] = 0
    targets = rng.integers(1, 23, (2, 11))
    module = t5_decoding.T5Decoding(config, COMPUTE)
    steps = all_logits(module, params, (jnp.asarray(inputs),), 14, targets)
    apply = jax.jit(functools.partial(t5.T5(config, COMPUTE).apply, deterministic=True))
    shifted = np.pad(targets, ((0, 0), (1, 0)))
    whole = apply({"params": params}, jnp.asarray(inputs), jnp.asarray(shifted))
    np.testing.assert_allclose(steps, whole, atol=1e-5)


# Prompts of 6 and 3 tokens, padded on the left, and 4 tokens after each.
LENGTHS = (6, 3)
TOKENS = np.random.default_rng(2).integers(1, 23, (2, max(LENGTHS) + NEW_TOKENS))


def steps_after_prompts(module, params):
    prompts = np.zeros((2, max(LENGTHS)), int)
    for row, length in enumerate(LENGTHS):
        prompts[row, -length:] = TOKENS[row, :length]
    later = [TOKENS[row, n : n + NEW_TOKENS] for row, n in enumerate(LENGTHS)]
    num_padding = max(LENGTHS) - np.array(LENGTHS)
    start = jnp.asarray(prompts), jnp.asarray(num_padding)
    return all_logits(module, params, start, 13, np.stack(later))


@pytest.mark.parametrize(
    "switches",
    [{"clamp_length": 3}, {"attn_type": "uni"}],
    ids=["bi-clamped", "uni"],
)
def test_xlnet_steps_equal_the_query_stream_of_one_call(switches):
    config = xlnet.XLNetConfig(**SIZES | switches)
    params = random_params("xlnet", config)
    steps = steps_after_prompts(memory_decoding.XLNetDecoding(config, COMPUTE), params)
    apply = jax.jit(
        functools.partial(xlnet.XLNet(config, COMPUTE).apply, deterministic=True)
    )
    # Positions after the last target have higher ranks: no target sees them.
    tokens = np.pad(TOKENS, ((0, 0), (0, 1)))
    position = np.arange(tokens.shape[1])
    lengths = np.array(LENGTHS)[:, None]
    whole = apply(
        {"params": params},
        jnp.asarray(tokens),
        factorization_ranks=jnp.asarray(np.maximum(position - lengths, -1)),
        # As in training; the term cancels where all types are the same.
        token_types=jnp.zeros(tokens.shape, int),
        target_positions=jnp.asarray(lengths + np.arange(NEW_TOKENS + 1)),
    )
    np.testing.assert_allclose(steps, whole.values, atol=1e-5)


TRANSFORMER_XL = transformer_xl.TransformerXLConfig(mem_length=20, **SIZES)


def test_transformer_xl_steps_equal_the_whole_row():
    params = random_params("transformer_xl", TRANSFORMER_XL)
    module = memory_decoding.TransformerXLDecoding(TRANSFORMER_XL, COMPUTE)
    steps = steps_after_prompts(module, params)
    model = transformer_xl.TransformerXL(TRANSFORMER_XL, COMPUTE)
    apply = jax.jit(functools.partial(model.apply, deterministic=True))
    whole = apply({"params": params}, jnp.asarray(TOKENS))
    for row, length in enumerate(LENGTHS):
        expected = whole.values[row, length - 1 : length + NEW_TOKENS]
        np.testing.assert_allclose(steps[row], expected, atol=1e-5)


@pytest.mark.parametrize(
    "switches",
    [
        {"mem_length": 5, "same_length": True},
        {"mem_length": 3, "pre_norm": True, "shared_biases": True, "clamp_length": 2},
    ],
    ids=["same-length", "pre-norm"],
)
def test_transformer_xl_steps_equal_calls_with_memories(switches):
    config = dataclasses.replace(TRANSFORMER_XL, **switches)
    params = random_params("transformer_xl", config)
    module = memory_decoding.TransformerXLDecoding(config, COMPUTE)
    steps = steps_after_prompts(module, params)
    model = transformer_xl.TransformerXL(config, COMPUTE)
    apply = jax.jit(functools.partial(model.apply, deterministic=True))
    for row, length in enumerate(LENGTHS):
        memories, logits = None, []
        for token in TOKENS[row, : length + NEW_TOKENS]:
            out = apply({"params": params}, jnp.asarray([[token]]), memories=memories)
            memories = out.memories
            logits.append(out.values[0, 0])
        np.testing.assert_allclose(steps[row], logits[length - 1 :], atol=1e-5)
