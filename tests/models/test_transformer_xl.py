"""Transformer-XL against the paper's equations in float64, and how memories behave."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import layer_stacks
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import relative_attention
from prottrans_jax.models import transformer_xl
from prottrans_jax.objectives import losses

BATCH, LENGTH = 3, 7
SIZES = dict(
    vocab_size=23,
    num_layers=2,
    num_heads=3,
    head_dim=5,
    d_model=12,
    d_ff=17,
    mem_length=6,
    dropout_rate=0.0,
)
# A row with two proteins, one with padding, one with one protein; then what memories
# belong to (0 is none).
SEGMENTS = np.array([[4, 4, 4, 5, 5, 5, 5], [2, 2, 2, 2, 2, 0, 0], [1] * 7])
MEMORY_SEGMENTS = np.array([[3, 3, 4, 4, 4, 4], [1, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]])


def make_model(compute=None, **options):
    config = transformer_xl.TransformerXLConfig(**(SIZES | options))
    return transformer_xl.TransformerXL(
        config, compute_config.ComputeConfig(**compute or {})
    )


def random_params(model, seed=0):
    """Parameters without values of 0 or 1, which could hide errors."""
    shapes = jax.eval_shape(
        lambda: transformer_xl.init_params(
            model.config, jax.random.key(0), model.compute
        )
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, tokens, method="__call__", **inputs):
    return model.apply(
        {"params": params}, tokens, deterministic=True, method=method, **inputs
    )


# The oracle.


def layer_norm(x, p, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * p["scale"] + p["bias"]


def reference(config, params, tokens, segments, memories, memory_segments):
    """Equations of section 3.3 of Dai et al. (2019), one row and one head at a time.

    Each sum is written out; nothing is shifted, packed or broadcast over the batch.
    """
    table = params["token_embedder"]["embedding"]
    decoder = params["decoder"]
    all_logits, all_memories = [], []
    for row in range(len(tokens)):
        h = table[tokens[row]] * np.sqrt(config.d_model)
        new_memories = []
        for n in range(config.num_layers):
            p = jax.tree.map(lambda x, n=n: x[n], decoder["layers"])
            remembered = memories[n, row]
            start = len(remembered)
            everything = np.concatenate([remembered, h])
            new_memories.append(everything[len(everything) - config.mem_length :])
            owner = np.concatenate([memory_segments[row], segments[row]])
            a = p["attention"]
            u = (decoder if config.shared_biases else a)["content_bias"]
            v = (decoder if config.shared_biases else a)["position_bias"]
            norm = functools.partial(
                layer_norm, p=p["attention_layer_norm"], epsilon=config.norm_epsilon
            )
            source = norm(everything) if config.pre_norm else everything
            heads = []
            for head in range(config.num_heads):
                part = slice(head * config.head_dim, (head + 1) * config.head_dim)
                q, k, val, w_r = (
                    a[name]["kernel"][:, part]
                    for name in ("query", "key", "value", "position")
                )
                context = np.zeros((len(h), config.head_dim))
                for i in range(len(h)):
                    scores, values = [], []
                    for j in range(start + i + 1):
                        distance = start + i - j
                        if config.same_length and distance >= config.mem_length:
                            continue
                        if owner[j] == 0 or owner[j] != segments[row, i]:
                            continue
                        if config.clamp_length:
                            distance = min(distance, config.clamp_length)
                        angles = distance / 10000 ** (
                            np.arange(0, config.d_model, 2) / config.d_model
                        )
                        r = np.concatenate([np.sin(angles), np.cos(angles)]) @ w_r
                        query, key = source[start + i] @ q, source[j] @ k
                        # Terms (a) + (c), and (b) + (d).
                        score = (query + u[head]) @ key + (query + v[head]) @ r
                        scores.append(score / np.sqrt(config.head_dim))
                        values.append(source[j] @ val)
                    if scores:
                        weights = np.exp(scores - np.max(scores))
                        context[i] = weights @ np.array(values) / weights.sum()
                heads.append(context)
            h = h + np.concatenate(heads, -1) @ a["out"]["kernel"]
            h = h if config.pre_norm else norm(h)
            norm = functools.partial(
                layer_norm, p=p["mlp_layer_norm"], epsilon=config.norm_epsilon
            )
            x = norm(h) if config.pre_norm else h
            hidden = x @ p["mlp"]["wi"]["kernel"] + p["mlp"]["wi"]["bias"]
            h = h + np.maximum(hidden, 0) @ p["mlp"]["wo"]["kernel"]
            h = h + p["mlp"]["wo"]["bias"]
            h = h if config.pre_norm else norm(h)
        all_logits.append(h @ table.T + params["logits_bias"])
        all_memories.append(new_memories)
    return np.array(all_logits), np.swapaxes(np.array(all_memories), 0, 1)


COMBINATIONS = [
    {},
    {"pre_norm": True, "clamp_length": 4},
    {"shared_biases": True},
    {"same_length": True},
    {"same_length": True, "mem_length": 3, "pre_norm": True},
    {"mem_length": 0, "head_dim": 4},
    {"num_heads": 1, "head_dim": 3, "norm_epsilon": 1e-2, "num_layers": 3},
    {"clamp_length": 2, "shared_biases": True, "pre_norm": True, "d_model": 10},
    {"mem_length": 9, "same_length": True, "clamp_length": 5, "head_dim": 8},
    {"blockwise": True},
    {"blockwise": True, "same_length": True, "mem_length": 3, "pre_norm": True},
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_against_the_equations_in_float64(options, monkeypatch):
    monkeypatch.setattr(relative_attention, "MIN_BLOCK", 3)
    options = dict(options)
    attention = "blockwise" if options.pop("blockwise", False) else "plain"
    compute = {"attention": attention, "attention_block_size": 1}
    model = make_model(compute, **options)
    config = model.config
    params = random_params(model)
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, 23, (2, BATCH, LENGTH))
    # Fewer memories than the model keeps, in one case: they grow.
    mem_length = min(config.mem_length, 6)
    shape = (config.num_layers, BATCH, mem_length, config.d_model)
    memories = rng.normal(size=shape).astype(np.float32)
    memory_segments = MEMORY_SEGMENTS[:, 6 - mem_length :]
    inputs = {
        "segment_ids": SEGMENTS,
        "memories": memories,
        "memory_segments": memory_segments,
    }

    @jax.jit
    def loss(params):
        out = model.apply(
            {"params": params},
            jnp.asarray(tokens),
            deterministic=True,
            **jax.device_put(inputs),
        )
        nll = losses.softmax_cross_entropy(out.values, jnp.asarray(targets)).nll
        return jnp.sum(nll * (SEGMENTS > 0)), out

    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params)

    def oracle(params):
        logits, new = reference(
            config, params, tokens, SEGMENTS, np.float64(memories), memory_segments
        )
        nll = np.log(np.exp(logits).sum(-1))
        nll -= np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return (nll * (SEGMENTS > 0)).sum(), logits, new

    wide = jax.tree.map(np.float64, params)
    expected, logits, new = oracle(wide)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(out.values, logits, rtol=0, atol=2e-5)
    np.testing.assert_allclose(out.memories, new, rtol=0, atol=2e-5)
    # The derivative along a direction through all parameters, by differences.
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), wide)
    step = 1e-5

    def along(sign):
        return oracle(jax.tree.map(lambda x, d: x + sign * step * d, wide, direction))

    slope = (along(1)[0] - along(-1)[0]) / (2 * step)
    ours = sum(
        np.vdot(np.float64(g), d)
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(ours, slope, rtol=1e-4)


def test_a_sequence_cut_in_two_is_the_sequence():
    model = make_model(mem_length=LENGTH)
    params = random_params(model)
    tokens = np.random.default_rng(2).integers(0, 23, (BATCH, 2 * LENGTH))
    whole = apply(model, params, tokens).values
    first = apply(model, params, tokens[:, :LENGTH])
    second = apply(
        model,
        params,
        tokens[:, LENGTH:],
        memories=first.memories,
        memory_segments=np.ones((BATCH, LENGTH), int),
    )
    halves = np.concatenate([first.values, second.values], axis=1)
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-5)
    forgetful = apply(model, params, tokens[:, LENGTH:]).values
    assert np.abs(forgetful - whole[:, LENGTH:]).max() > 1e-2


def test_a_position_depends_on_those_before_it_in_its_protein_only():
    model = make_model()
    params = random_params(model)
    tokens = np.random.default_rng(3).integers(0, 23, (BATCH, LENGTH))
    memories = np.random.default_rng(4).normal(size=(2, BATCH, 6, 12))
    memory_segments = jnp.asarray(MEMORY_SEGMENTS)

    @jax.jit
    def influence(position):
        """Influence of each input and memory on one position, each [batch, length]."""

        def output(shift, memories):
            x = params["token_embedder"]["embedding"][tokens] + shift
            out = model.bind({"params": params}).decoder(
                x, jnp.asarray(SEGMENTS), memories, memory_segments, deterministic=True
            )
            return jnp.sum(jnp.sin(out.values[:, position]))

        grads = jax.grad(output, argnums=(0, 1))(
            jnp.zeros((BATCH, LENGTH, 12)), jnp.asarray(memories, jnp.float32)
        )
        return (grads[0] != 0).any(-1), (grads[1] != 0).any((0, 3))

    for position in (0, 2, 4, 6):
        inputs, remembered = influence(position)
        own = SEGMENTS[:, position, None]
        expected = (SEGMENTS == own) & (own != 0) & (np.arange(LENGTH) <= position)
        # Padding still sees itself, through the residual stream.
        expected[:, position] = True
        assert np.array_equal(inputs, expected)
        assert np.array_equal(remembered, (own == MEMORY_SEGMENTS) & (own != 0))


def test_packed_is_as_if_alone_and_padding_changes_nothing():
    model = make_model()
    params = random_params(model)
    tokens = np.random.default_rng(5).integers(0, 23, (BATCH, LENGTH))
    packed = apply(model, params, tokens, method="encode", mask=SEGMENTS)
    # The second protein of the first row, and the first of the second.
    alone = apply(model, params, tokens[:1, 3:], method="encode", mask=SEGMENTS[:1, 3:])
    np.testing.assert_allclose(packed[:1, 3:], alone, rtol=0, atol=1e-5)
    alone = apply(
        model, params, tokens[1:2, :5], method="encode", mask=np.ones((1, 5), bool)
    )
    np.testing.assert_allclose(packed[1:2, :5], alone, rtol=0, atol=1e-5)
    others = apply(
        model, params, np.where(SEGMENTS, tokens, 0), method="encode", mask=SEGMENTS
    )
    assert np.array_equal(packed[SEGMENTS > 0], others[SEGMENTS > 0])


@pytest.mark.parametrize(
    "compute",
    [{"scan_layers": False}, {"remat_policy": "minimal"}],
    ids=str,
)
def test_settings_that_change_only_speed_and_memory(compute):
    base = make_model()
    params = random_params(base)
    tokens = np.random.default_rng(6).integers(0, 23, (BATCH, LENGTH))
    memories = np.random.default_rng(7).normal(size=(2, BATCH, 6, 12))
    tokens, memories = jax.device_put((tokens, memories))

    def run(model, params):
        @jax.jit
        def loss(params):
            out = model.apply(
                {"params": params}, tokens, memories=memories, deterministic=True
            )
            return jnp.sum(jnp.sin(out.values)), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

    expected = run(base, params)
    model = make_model(compute)
    if not model.compute.scan_layers:
        params = layer_stacks.unstack(params)
    out, grads = run(model, params)
    if not model.compute.scan_layers:
        grads = layer_stacks.stack(grads)
    for ours, theirs in zip(
        jax.tree.leaves((out, grads)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_bfloat16_stays_close_and_keeps_float32_logits_and_gradients():
    base, model = make_model(), make_model({"dtype": "bfloat16"})
    params = random_params(base)
    tokens = np.random.default_rng(8).integers(0, 23, (BATCH, LENGTH))
    out, expected = apply(model, params, tokens), apply(base, params, tokens)
    assert out.values.dtype == jnp.float32
    assert out.memories.dtype == jnp.bfloat16
    limit = 0.05 * np.abs(expected.values).max()
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=limit)
    grads = jax.grad(lambda p: apply(model, p, tokens).values.var())(params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))


def test_dropout_depends_on_the_key_only():
    model = make_model(dropout_rate=0.3, attention_dropout_rate=0.2)
    params = random_params(model)
    tokens = jnp.asarray(np.random.default_rng(9).integers(0, 23, (BATCH, LENGTH)))

    @jax.jit
    def run(seed):
        out = model.apply(
            {"params": params},
            tokens,
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
        )
        return out.values

    assert np.array_equal(run(1), run(1))
    assert not np.allclose(run(1), run(2), atol=1e-3)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"remat_policy='half'.*minimal"):
        compute_config.ComputeConfig(remat_policy="half")
    with pytest.raises(ValueError, match="same_length=True with mem_length=0"):
        make_model(same_length=True, mem_length=0)
    with pytest.raises(ValueError, match="d_model=13"):
        random_params(make_model(d_model=13))


def test_fused_attention_is_refused():
    model = make_model({"fused_attention": True})
    with pytest.raises(ValueError, match="relative attention has no fused kernel"):
        random_params(model)
