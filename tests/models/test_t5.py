"""T5: sizes, segments, causality, and settings that do not change results."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import layer_stacks
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5

SIZES = dict(
    vocab_size=31,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
)
BATCH, LENGTH, TARGET_LENGTH = 2, 12, 9
# Proteins of 5 and 4 tokens, then padding; in the decoder of 4 and 3.
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3] * BATCH)
TARGET_SEGMENTS = np.array([[1] * 4 + [2] * 3 + [0] * 2] * BATCH)
FIRST, SECOND = SEGMENTS == 1, SEGMENTS == 2
TARGET_FIRST, TARGET_SECOND = TARGET_SEGMENTS == 1, TARGET_SEGMENTS == 2


def make_model(compute=None, **switches):
    config = t5.T5Config(**{**SIZES, **switches})
    return t5.T5(config, compute_config.ComputeConfig(**compute or {}))


@functools.cache
def random_params():
    """Unrolled parameters, all redrawn so that no scale is 1."""
    init = jax.jit(t5.init_params, static_argnums=(0, 2))
    unrolled = compute_config.ComputeConfig(scan_layers=False)
    params = init(make_model().config, jax.random.key(0), unrolled)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        0.5 * x + 0.2 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return tree.unflatten(drawn)


def params_for(model):
    params = random_params()
    return layer_stacks.stack(params) if model.compute.scan_layers else params


def make_tokens():
    keys = jax.random.split(jax.random.key(2))
    return (
        jax.random.randint(keys[0], (BATCH, LENGTH), 1, SIZES["vocab_size"]),
        jax.random.randint(keys[1], (BATCH, TARGET_LENGTH), 1, SIZES["vocab_size"]),
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, target_tokens, rng=None):
    return model.apply(
        {"params": params},
        tokens,
        target_tokens,
        encoder_segment_ids=jnp.asarray(SEGMENTS),
        decoder_segment_ids=jnp.asarray(TARGET_SEGMENTS),
        deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_and_grads(model, params, tokens, target_tokens):
    def loss(params):
        logits = logits_of(model, params, tokens, target_tokens)
        weights = jnp.asarray(TARGET_SEGMENTS > 0)[..., None]
        return jnp.mean(weights * jnp.square(logits)), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    return logits, grads


def assert_trees_close(ours, expected, atol):
    def close(path, x, y):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(close, ours, expected)


# ProtT5-XL and -XXL (Elnaggar et al. 2021): the sizes of the released files.
PROT_T5 = {
    "xl": (dict(num_heads=32, d_ff=16384), 2_818_830_336, 1_208_141_824),
    "xxl": (dict(num_heads=128, d_ff=65536), 11_274_553_344, 4_832_023_552),
}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("size", PROT_T5)
def test_parameter_counts_of_the_released_models(size, scan_layers):
    sizes, total, encoder_total = PROT_T5[size]
    config = t5.T5Config(
        vocab_size=128,
        num_layers=24,
        num_decoder_layers=24,
        head_dim=128,
        d_model=1024,
        **sizes,
    )
    compute = compute_config.ComputeConfig(scan_layers=scan_layers)
    init = functools.partial(t5.init_params, config, compute=compute)
    shapes = jax.eval_shape(init, jax.random.key(0))

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    assert count(shapes) == total
    assert count([shapes["token_embedder"], shapes["encoder"]]) == encoder_total


def test_every_parameter_has_a_logical_name_for_each_axis():
    tokens = jnp.zeros((1, 1), jnp.int32)
    for scan_layers in (True, False):
        model = make_model({"scan_layers": scan_layers}, tie_embeddings=False)
        boxed = jax.eval_shape(
            lambda model=model: model.init(
                jax.random.key(0), tokens, tokens, deterministic=True
            )
        )
        leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
        for leaf in leaves:
            assert isinstance(leaf, nn.Partitioned)
            assert len(leaf.names) == leaf.value.ndim
            assert None not in leaf.names


def test_a_neighbour_in_the_row_changes_nothing():
    model, (tokens, targets) = make_model(), make_tokens()
    params = params_for(model)
    logits = logits_of(model, params, tokens, targets)
    others = logits_of(
        model,
        params,
        jnp.where(SECOND, (tokens + 7) % 31, tokens),
        jnp.where(TARGET_SECOND, (targets + 3) % 31, targets),
    )
    assert np.array_equal(logits[TARGET_FIRST], others[TARGET_FIRST])
    assert not np.array_equal(logits[TARGET_SECOND], others[TARGET_SECOND])


def test_padding_changes_nothing():
    model, (tokens, targets) = make_model(), make_tokens()
    params = params_for(model)
    logits = logits_of(model, params, tokens, targets)
    others = logits_of(
        model,
        params,
        jnp.where(SEGMENTS == 0, 0, tokens),
        jnp.where(TARGET_SEGMENTS == 0, 0, targets),
    )
    real = TARGET_SEGMENTS > 0
    assert np.array_equal(logits[real], others[real])


@pytest.mark.parametrize("attention", ["plain", "blockwise"])
def test_a_packed_protein_is_treated_as_if_alone(attention):
    model = make_model({"attention": attention, "attention_block_size": 5})
    params, (tokens, targets) = params_for(model), make_tokens()
    logits = logits_of(model, params, tokens, targets)
    # Only the second protein of each row, at the start of a row of its own, no pads.
    alone = model.apply(
        {"params": params}, tokens[:, 5:9], targets[:, 4:7], deterministic=True
    )
    np.testing.assert_allclose(logits[:, 4:7], alone, rtol=0, atol=1e-5)


def test_future_targets_and_other_proteins_have_zero_gradient():
    model = make_model()
    params = params_for(model)
    tokens, targets = make_tokens()

    @jax.jit
    def influence(position):
        """Influence of each input embedding, per stack, on one position's logits."""
        table = params["token_embedder"]["embedding"]

        def output(shift, target_shift):
            # Interpolating the embedding is not part of the model: shift the table rows
            # by one-hot tokens through an encoder and decoder bound separately.
            bound = model.bind({"params": params})
            encoded = bound.encoder(
                table[tokens] + shift, jnp.asarray(SEGMENTS), deterministic=True
            )
            logits = bound.decoder(
                table[targets] + target_shift,
                encoded,
                jnp.asarray(TARGET_SEGMENTS),
                jnp.asarray(SEGMENTS),
                deterministic=True,
            )
            return jnp.sum(jnp.sin(logits[:, position]))

        shifts = jnp.zeros((BATCH, LENGTH, 10)), jnp.zeros((BATCH, TARGET_LENGTH, 10))
        grads = jax.grad(output, argnums=(0, 1))(*shifts)
        return [jnp.abs(x).sum(axis=(0, 2)) > 0 for x in grads]

    inputs, previous = influence(5)  # the second target of the second protein
    assert np.array_equal(inputs, SECOND[0])
    assert np.flatnonzero(previous).tolist() == [4, 5]


@pytest.mark.parametrize(
    "compute",
    [
        dict(scan_layers=False, remat_policy="save_outputs"),
        dict(attention="blockwise", attention_block_size=5),
        dict(remat_policy="full"),
        dict(remat_policy="minimal"),
        dict(remat_policy="save_attention"),
    ],
    ids=str,
)
def test_settings_that_change_only_speed_and_memory(compute):
    tokens, targets = make_tokens()
    model, base = make_model(compute), make_model()
    logits, grads = logits_and_grads(model, params_for(model), tokens, targets)
    expected, expected_grads = logits_and_grads(base, params_for(base), tokens, targets)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    if not model.compute.scan_layers:
        grads = layer_stacks.stack(grads)
    assert_trees_close(grads, expected_grads, atol=1e-5)


def test_bfloat16_compute_stays_close_and_keeps_float32_logits_and_gradients():
    tokens, targets = make_tokens()
    model, base = make_model({"dtype": "bfloat16"}), make_model()
    params = params_for(base)
    logits, grads = logits_and_grads(model, params, tokens, targets)
    expected, exact = logits_and_grads(base, params, tokens, targets)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits: relative error 2^-9 per rounding, some 30 roundings deep.
    limit = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))
    ours, exact = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (grads, exact)
    )
    cosine = ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact)
    assert cosine > 0.995


def test_dropout_depends_on_the_key_only_and_is_off_when_deterministic():
    tokens, targets = make_tokens()
    model = make_model(dropout_rate=0.3)
    params = params_for(model)
    first = logits_of(model, params, tokens, targets, jax.random.key(1))
    again = logits_of(model, params, tokens, targets, jax.random.key(1))
    other = logits_of(model, params, tokens, targets, jax.random.key(2))
    off = logits_of(model, params, tokens, targets)
    without = logits_of(make_model(dropout_rate=0.0), params, tokens, targets)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    assert np.array_equal(off, without)


def test_stacking_and_unstacking_are_inverse():
    params = random_params()
    again = layer_stacks.unstack(layer_stacks.stack(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert_trees_close(again, params, atol=0)


def test_encode_takes_a_mask_or_segments():
    model, (tokens, _) = make_model(), make_tokens()
    encode = functools.partial(
        model.apply,
        {"params": params_for(model)},
        deterministic=True,
        method=t5.T5.encode,
    )
    masked = encode(tokens, jnp.asarray(FIRST))
    packed = encode(tokens, jnp.asarray(SEGMENTS))
    assert masked.shape == (BATCH, LENGTH, 10)
    np.testing.assert_allclose(masked[FIRST], packed[FIRST], rtol=0, atol=1e-6)


def test_unknown_switches_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"remat_policy='half'.*minimal"):
        compute_config.ComputeConfig(remat_policy="half")
    with pytest.raises(ValueError, match="blockwise"):
        compute_config.ComputeConfig(attention="flash")
