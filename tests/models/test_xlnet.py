"""XLNet: attention masks, memories, padding, packing, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import layer_stacks
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import relative_attention
from prottrans_jax.models import xlnet

BATCH, LENGTH = 2, 8
SIZES = dict(
    vocab_size=23,
    num_layers=2,
    num_heads=3,
    head_dim=5,
    d_model=12,
    d_ff=17,
    dropout_rate=0.0,
)
# Two proteins and padding on the right; padding on the left of one.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1, 1]])
RANKS = np.array([[-1, 1, 0, -1, -1, 2, 0, -1], [-1, -1, 2, -1, 0, 3, -1, 1]])
POSITIONS = np.array([[1, 5, 2, 6], [7, 2, 5, 4]])


def make_model(compute=None, **options):
    config = xlnet.XLNetConfig(**(SIZES | options))
    return xlnet.XLNet(config, compute_config.ComputeConfig(**compute or {}))


def random_params(model, seed=0):
    """Parameters without values of 0 or 1, which could hide errors."""
    shapes = jax.eval_shape(
        lambda: xlnet.init_params(model.config, jax.random.key(0), model.compute)
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0.0, 0.4, x.shape).astype(np.float32), shapes
    )


def make_tokens(length=LENGTH, seed=1):
    return np.random.default_rng(seed).integers(0, 23, (BATCH, length))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, tokens, method="__call__", **inputs):
    return model.apply(
        {"params": params}, tokens, deterministic=True, method=method, **inputs
    )


def test_size_is_that_of_the_released_file_to_the_byte():
    # 1,637,654,676 bytes of float32 is what the released file holds beside its
    # pickle's own overhead.
    config = xlnet.XLNetConfig(
        vocab_size=37, num_layers=30, num_heads=16, head_dim=64, d_model=1024, d_ff=4096
    )
    params = jax.eval_shape(lambda: xlnet.init_params(config, jax.random.key(0)))
    assert sum(4 * x.size for x in jax.tree.leaves(params)) == 1_637_654_676


def test_streams_see_what_the_order_allows_by_gradients():
    model = make_model()
    params = random_params(model)
    tokens = make_tokens()
    mask = xlnet._mask(
        model.config,
        jnp.asarray(SEGMENTS),
        None,
        0,
        xlnet._order(None, jnp.asarray(RANKS)),
        jnp.asarray(POSITIONS),
    )
    memories = jnp.zeros((2, BATCH, 0, 12))

    @jax.jit
    def influence(output):
        """Influence of each token's embedding on one output, [batch, length]."""

        def value(shift):
            x = params["token_embedder"]["embedding"][tokens] + shift
            queries = jnp.broadcast_to(params["mask_embedding"], (BATCH, 4, 12))
            x = jnp.concatenate([x, queries], axis=1)
            out = model.bind({"params": params}).encoder(
                x, mask, None, jnp.asarray(POSITIONS), memories, deterministic=True
            )
            return jnp.sum(jnp.sin(out.values[:, output]))

        grad = jax.grad(value)(jnp.zeros((BATCH, LENGTH, 12)))
        return (grad != 0).any(-1)

    def allowed(row, position, *, itself):
        """Keys a position may attend to; over two layers the order is transitive."""
        own = (SEGMENTS[row] == SEGMENTS[row, position]) & (SEGMENTS[row] > 0)
        rank = RANKS[row]
        seen = own & ((rank == -1) | (rank < rank[position]))
        if itself:
            seen[position] = True
        return seen

    for slot in range(4):
        seen = influence(LENGTH + slot)
        for row in range(BATCH):
            expected = allowed(row, POSITIONS[row, slot], itself=False)
            assert np.array_equal(seen[row], expected)
    for position in (0, 2, 5):
        seen = influence(position)
        for row in range(BATCH):
            assert np.array_equal(seen[row], allowed(row, position, itself=True))


def test_ranks_are_equivalent_to_a_mask():
    model = make_model()
    params, tokens = random_params(model), make_tokens()
    hidden = (RANKS[:, None, :] != -1) & (RANKS[:, None, :] >= RANKS[:, :, None])
    inputs = {"segment_ids": SEGMENTS, "token_types": (RANKS > 1).astype(int)}
    by_mask = apply(
        model,
        params,
        tokens,
        perm_mask=hidden.astype(np.float32),
        target_mapping=np.eye(LENGTH)[POSITIONS],
        **inputs,
    )
    by_rank = apply(
        model,
        params,
        tokens,
        factorization_ranks=RANKS,
        target_positions=POSITIONS,
        **inputs,
    )
    assert np.array_equal(by_mask.values, by_rank.values)
    # A slot that is not in use changes no other.
    fewer = np.where(np.arange(4) == 1, -1, POSITIONS)
    some = apply(
        model,
        params,
        tokens,
        factorization_ranks=RANKS,
        target_positions=fewer,
        **inputs,
    )
    used = np.arange(4) != 1
    assert np.array_equal(some.values[:, used], by_rank.values[:, used])
    with pytest.raises(ValueError, match="not both"):
        apply(model, params, tokens, perm_mask=hidden * 1.0, factorization_ranks=RANKS)


@pytest.mark.parametrize("reuse_length", [0, 5])
def test_a_causal_sequence_cut_in_two_is_the_sequence(reuse_length):
    model = make_model(
        {"scan_layers": False},
        attn_type="uni",
        mem_length=LENGTH,
        reuse_length=reuse_length,
    )
    params = random_params(model)
    params = layer_stacks.unstack(layer_stacks.stack(params))
    tokens = make_tokens(2 * LENGTH)
    cut = reuse_length or LENGTH
    first = apply(model, params, tokens[:, :LENGTH])
    assert first.memories.shape == (2, BATCH, cut, 12)
    second = apply(
        model,
        params,
        tokens[:, cut : cut + LENGTH],
        memories=first.memories,
        memory_segments=np.ones((BATCH, cut), int),
    )
    whole = apply(model, params, tokens[:, : cut + LENGTH]).values
    np.testing.assert_allclose(second.values, whole[:, cut:], rtol=0, atol=1e-5)
    forgetful = apply(model, params, tokens[:, cut : cut + LENGTH]).values
    assert np.abs(forgetful - whole[:, cut:]).max() > 1e-2
    # Another protein's memories are as none.
    other = apply(
        model,
        params,
        tokens[:, cut : cut + LENGTH],
        memories=first.memories,
        memory_segments=np.full((BATCH, cut), 2),
    )
    np.testing.assert_allclose(other.values, forgetful, rtol=0, atol=1e-5)


def test_no_gradient_passes_through_memories():
    model = make_model(mem_length=LENGTH)
    params, tokens = random_params(model), make_tokens()

    def remembered(params):
        return jnp.sum(jnp.sin(apply(model, params, tokens).memories))

    grads = jax.grad(remembered)(params)
    assert all(not x.any() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
def test_packed_is_as_if_alone_and_padding_changes_nothing(attn_type):
    model = make_model(attn_type=attn_type)
    params, tokens = random_params(model), make_tokens()
    packed = apply(model, params, tokens, method="encode", mask=SEGMENTS)
    for row, places in ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(2, 8))):
        alone = apply(
            model,
            params,
            tokens[row : row + 1, places],
            method="encode",
            mask=np.ones((1, places.stop - places.start), bool),
        )
        np.testing.assert_allclose(packed[row, places], alone[0], rtol=0, atol=1e-5)
    others = np.where(SEGMENTS > 0, tokens, (tokens + 5) % 23)
    others = apply(model, params, others, method="encode", mask=SEGMENTS)
    assert np.array_equal(packed[SEGMENTS > 0], others[SEGMENTS > 0])


@pytest.mark.parametrize(
    "compute",
    [{"scan_layers": False}, {"remat_policy": "save_attention"}],
    ids=str,
)
def test_settings_that_change_only_speed_and_memory(compute):
    base = make_model(mem_length=3)
    params, tokens = random_params(base), jnp.asarray(make_tokens())
    inputs = {
        "memories": np.random.default_rng(7).normal(size=(2, BATCH, 3, 12)),
        "token_types": RANKS,
        "factorization_ranks": RANKS,
        "target_positions": POSITIONS,
    }
    inputs = jax.device_put(inputs)

    def run(model, params):
        @jax.jit
        def loss(params):
            out = model.apply({"params": params}, tokens, **inputs, deterministic=True)
            return jnp.sum(jnp.sin(out.values)), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

    expected = run(base, params)
    model = make_model(compute, mem_length=3)
    if not model.compute.scan_layers:
        params = layer_stacks.unstack(params)
    out, grads = run(model, params)
    if not model.compute.scan_layers:
        grads = layer_stacks.stack(grads)
    for ours, theirs in zip(
        jax.tree.leaves((out, grads)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_bfloat16_stays_close_and_keeps_float32_logits_and_gradients():
    base, model = make_model(), make_model({"dtype": "bfloat16"})
    params, tokens = random_params(base), make_tokens()
    inputs = {"factorization_ranks": RANKS, "target_positions": POSITIONS}

    def loss(model, params):
        logits = apply(model, params, tokens, **inputs).values
        return logits.var(), logits

    (_, logits), grads = jax.value_and_grad(loss, 1, has_aux=True)(model, params)
    (_, expected), exact = jax.value_and_grad(loss, 1, has_aux=True)(base, params)
    assert logits.dtype == jnp.float32
    limit = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))
    ours, exact = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (grads, exact)
    )
    assert ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact) > 0.99


def test_shifts_and_their_derivatives_agree_with_indexing():
    rng = np.random.default_rng(3)
    heads, length, kv_length = 3, 5, 7
    distances = relative_attention.distances(length, kv_length, causal=False)
    scores = rng.normal(size=(BATCH, heads, length, len(distances)))
    place = {d: k for k, d in enumerate(distances)}
    weights = rng.normal(size=(BATCH, heads, length, kv_length))

    def expect(positions):
        index = [
            [[place[kv_length - length + p - j] for j in range(kv_length)] for p in row]
            for row in positions
        ]
        return np.asarray(index)[:, None]

    index = np.broadcast_to(expect([range(length)] * BATCH), weights.shape)
    expected = np.take_along_axis(scores, index, -1)
    ours = relative_attention.shift(jnp.asarray(scores), kv_length)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)

    positions = rng.integers(0, length, (BATCH, length))
    index = np.broadcast_to(expect(positions), weights.shape)

    def shift_rows(scores):
        starts = jnp.asarray(length - positions)
        return relative_attention.shift_rows(scores, starts, kv_length)

    value, pull = jax.vjp(shift_rows, jnp.asarray(scores))
    np.testing.assert_allclose(value, np.take_along_axis(scores, index, -1), rtol=1e-6)
    (grad,) = pull(jnp.asarray(weights, value.dtype))
    expected = np.zeros_like(scores)
    np.put_along_axis(expected, index, weights, -1)  # no distance occurs twice
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


def test_scores_of_blocks_of_queries_are_those_of_all(monkeypatch):
    model = make_model({"scan_layers": False}, mem_length=3)
    params, tokens = random_params(model), jnp.asarray(make_tokens(12))
    memories = jnp.asarray(np.random.default_rng(7).normal(size=(2, BATCH, 3, 12)))

    def loss(params):
        out = model.apply(
            {"params": params},
            tokens,
            memories=memories,
            target_positions=jnp.asarray(POSITIONS),
            deterministic=True,
        )
        return jnp.sum(jnp.sin(out.values))

    results = []
    for sizes in ((), (4,)):
        monkeypatch.setattr(relative_attention, "BLOCK_SIZES", sizes)
        results.append(jax.jit(jax.value_and_grad(loss))(params))
    for ours, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("block_size", [1, 6])  # 3 and 4 queries at 9 keys.
@pytest.mark.parametrize(
    "options",
    [{}, {"attn_type": "uni", "mem_length": 3}, {"bi_data": True, "mem_length": 3}],
    ids=str,
)
def test_blockwise_attention_is_the_plain_one(options, block_size, monkeypatch):
    monkeypatch.setattr(relative_attention, "MIN_BLOCK", 3)
    memories = np.random.default_rng(7).normal(size=(2, BATCH, 3, 12))
    inputs = {"token_types": RANKS, "segment_ids": SEGMENTS}
    if "mem_length" in options:
        inputs["memories"] = memories
    params, tokens = random_params(make_model()), jnp.asarray(make_tokens())
    inputs = jax.device_put(inputs)

    def run(**more):
        model = make_model(more, **options)

        @jax.jit
        def loss(params):
            out = model.apply({"params": params}, tokens, deterministic=True, **inputs)
            return jnp.sum(jnp.sin(out.values)), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    expected = run()
    found = run(attention="blockwise", attention_block_size=block_size)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_blockwise_scores_are_never_all_in_memory():
    length = 2048
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def temporary_bytes(**options):
        model = make_model({"attention_block_size": 64, **options})
        params = jax.eval_shape(
            lambda: xlnet.init_params(model.config, jax.random.key(0), model.compute)
        )
        lowered = apply.lower(model, params, tokens, method="encode", mask=tokens)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    scores = 4 * SIZES["num_heads"] * length**2
    assert temporary_bytes() > scores
    assert temporary_bytes(attention="blockwise") < scores / 2


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="attention='plain'"):
        model = make_model({"attention": "blockwise"})
        params, tokens = random_params(model), make_tokens()
        apply(model, params, tokens, target_positions=POSITIONS)
    with pytest.raises(ValueError, match=r"attn_type='both'.*bi, uni"):
        make_model(attn_type="both")
    with pytest.raises(ValueError, match="use an even number of rows"):
        model = make_model(bi_data=True)
        params = random_params(model)
        apply(model, params, make_tokens()[:1])


def test_fused_attention_is_refused():
    model = make_model({"fused_attention": True})
    with pytest.raises(ValueError, match="relative attention has no fused kernel"):
        random_params(model)
