"""Optimizers against their papers, and a stack against its layers one by one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prottrans_jax import partitioning
from prottrans_jax.optimizers import algorithms, schedules

_RATE = 0.03
_ALL = {
    "adafactor": algorithms.Adafactor(learning_rate=_RATE, min_dim_size_to_factor=4),
    "adafactor_momentum": algorithms.Adafactor(
        learning_rate=_RATE, min_dim_size_to_factor=4, beta1=0.9, weight_decay_rate=0.1
    ),
    "adafactor_plain": algorithms.Adafactor(
        learning_rate=_RATE, factored=False, multiply_by_parameter_scale=False
    ),
    "lamb": algorithms.Lamb(learning_rate=_RATE),
    "adamw": algorithms.AdamW(learning_rate=_RATE),
}


def _random(seed, *shape, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=shape)).astype(np.float32)


def _run(optimizer, axes, params, grads):
    transform = optimizer.build(axes)
    state = transform.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, grad)
    return params, state


def _adafactor_of_the_paper(x, grads, rate, factored):
    """Shazeer & Stern 2018, algorithms 4 and 5 with section 8's parameter scale."""
    x = x.astype(np.float64)
    rows, columns, v = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        g = g.astype(np.float64)
        decay = 1.0 - t**-0.8
        if factored:
            rows = decay * rows + (1 - decay) * (g**2 + 1e-30).sum(axis=1)
            columns = decay * columns + (1 - decay) * (g**2 + 1e-30).sum(axis=0)
            v = np.outer(rows, columns) / rows.sum()
        else:
            v = decay * v + (1 - decay) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u**2).mean()) / 1.0)
        x = x - rate * max(1e-3, np.sqrt((x**2).mean())) * u
    return x


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_adafactor_of_a_matrix_is_the_papers(shape):
    # Gradients that grow: the first updates are clipped, the later ones are not.
    grads = [_random(i, *shape, scale=3.0**i) for i in range(4)]
    x = _random(9, *shape)
    got, state = _run(_ALL["adafactor"], ("embed", "mlp"), x, grads)
    expected = _adafactor_of_the_paper(x, grads, _RATE, factored=True)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    assert {k: v.shape for k, v in state.param_states.items()} == {
        "v_row": (5,),
        "v_col": (7,),
    }


@pytest.mark.parametrize("shape", [(6,), (3, 7)])
def test_adafactor_of_a_vector_or_small_matrix_is_the_papers(shape):
    grads = [_random(i, *shape, scale=2.0**-i) for i in range(4)]
    # So small that the least parameter scale counts.
    x = _random(9, *shape, scale=1e-4)
    axes = ("embed", "mlp")[: len(shape)]
    got, state = _run(_ALL["adafactor"], axes, x, grads)
    expected = _adafactor_of_the_paper(x, grads, _RATE, factored=False)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-9)
    assert state.param_states["v"].shape == shape


def test_adafactor_momentum_and_decay_by_hand():
    # A first gradient of constant size: the update is its sign, never clipped.
    x, grad = np.full((2, 3), 2.0, np.float32), np.full((2, 3), -5.0, np.float32)
    optimizer = algorithms.Adafactor(
        learning_rate=0.1, beta1=0.75, weight_decay_rate=0.01
    )
    first, state = _run(optimizer, ("embed", "mlp"), x, [grad])
    # Parameter scale 2, momentum keeps a quarter: -(0.1 * 2 * -1) / 4 - 0.01 * 2.
    np.testing.assert_allclose(first, np.full((2, 3), 2.0 + 0.05 - 0.02), rtol=1e-6)
    np.testing.assert_allclose(state.param_states["m"], -0.05, rtol=1e-6)


def test_heads_apart_are_factored_like_heads_joined():
    x, grads = _random(1, 6, 4, 2), [_random(i, 6, 4, 2) for i in range(2, 5)]
    apart, state = _run(_ALL["adafactor"], ("embed", "heads", "kv"), x, grads)
    joined, _ = _run(
        _ALL["adafactor"],
        ("embed", "joined_kv"),
        x.reshape(6, 8),
        [grad.reshape(6, 8) for grad in grads],
    )
    np.testing.assert_allclose(apart.reshape(6, 8), joined, rtol=1e-6)
    assert state.param_states["v_col"].shape == (4, 2)


def test_kernel_with_an_axis_that_is_neither_row_nor_column_is_refused():
    optimizer, kernel = _ALL["adafactor"], {"conv": {"kernel": np.zeros((3, 5, 6))}}
    axes = {"conv": {"kernel": ("width", "embed", "mlp")}}
    with pytest.raises(ValueError, match=r"conv/kernel .*width.*neither"):
        optimizer.build(axes).init(kernel)


_LAYER = {
    "wi": {"kernel": (("embed", "mlp"), (8, 12))},
    "query": {"kernel": (("embed", "heads", "kv"), (8, 2, 3))},
    "norm": {"scale": (("embed",), (8,))},
    "out": {"bias": (("embed",), (8,))},
    "relpos_bias": {"rel_embedding": (("heads", "relpos_buckets"), (2, 5))},
}


def _layer(pick):
    is_leaf = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    return jax.tree.map(pick, _LAYER, is_leaf=is_leaf)


@pytest.mark.parametrize("name", _ALL)
def test_stack_is_updated_like_its_layers_one_by_one(name):
    # Layers of very different size, so that anything shared among them shows.
    def make(seed):
        return [
            _layer(lambda leaf, i=i: _random([seed, i], *leaf[1], scale=10.0**i))
            for i in range(3)
        ]

    layers, grads = make(0), [make(seed) for seed in (1, 2, 3)]
    alone = [
        _run(_ALL[name], _layer(lambda leaf: leaf[0]), layer, [g[i] for g in grads])[0]
        for i, layer in enumerate(layers)
    ]
    stacked, _ = _run(
        _ALL[name],
        _layer(lambda leaf: ("layers", *leaf[0])),
        jax.tree.map(lambda *x: np.stack(x), *layers),
        [jax.tree.map(lambda *x: np.stack(x), *g) for g in grads],
    )
    expected = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
        stacked,
        expected,
    )


def test_lamb_is_optax_for_weights_and_adamw_without_decay_for_biases():
    params = {"kernel": _random(0, 5, 3, scale=7.0), "bias": _random(1, 3, scale=7.0)}
    grads = [
        {"kernel": _random(i, 5, 3), "bias": _random(i + 9, 3)} for i in range(2, 5)
    ]
    axes = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    got, _ = _run(_ALL["lamb"], axes, params, grads)
    plain, _ = _run(
        algorithms.AdamW(learning_rate=_RATE, weight_decay=0.0), axes, params, grads
    )

    class Reference:
        build = staticmethod(lambda _: optax.lamb(_RATE, weight_decay=0.01))

    reference, _ = _run(Reference, axes, params, grads)
    np.testing.assert_allclose(got["kernel"], reference["kernel"], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], plain["bias"], rtol=1e-6)


def test_adamw_is_optax_with_decay_of_weights_only():
    params = {"kernel": _random(0, 5, 3), "scale": _random(1, 3)}
    grads = [{"kernel": _random(i, 5, 3), "scale": _random(i, 3)} for i in range(2, 5)]
    got, _ = _run(
        _ALL["adamw"], {"kernel": ("embed", "mlp"), "scale": ("mlp",)}, params, grads
    )

    class Reference:
        build = staticmethod(
            lambda _: optax.adamw(
                _RATE,
                eps=1e-6,
                weight_decay=0.01,
                mask={"kernel": True, "scale": False},
            )
        )

    reference, _ = _run(Reference, None, params, grads)
    jax.tree.map(np.testing.assert_array_equal, got, reference)


@pytest.mark.parametrize("name", _ALL)
def test_clipping_scales_the_whole_gradient_first(name):
    axes = {"a": ("embed", "mlp"), "b": ("mlp",)}
    params = {"a": _random(0, 5, 4), "b": _random(1, 4)}
    large, small = (
        jax.tree.map(lambda x, c=c: c * x / optax.tree.norm(params), params)
        for c in (10.0, 1.0)
    )
    clip = dataclasses.replace(_ALL[name], clip_norm=2.0)
    got, _ = _run(clip, axes, params, [large, small])
    fifth = jax.tree.map(lambda x: x / 5, large)
    expected, _ = _run(_ALL[name], axes, params, [fifth, small])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, expected
    )


@pytest.mark.parametrize("name", _ALL)
def test_learning_rate_follows_the_schedule(name):
    schedule = schedules.LinearWarmupLinearDecay(0.1, warmup_steps=2, total_steps=4)
    optimizer = dataclasses.replace(_ALL[name], learning_rate=schedule)
    params, grads = {"w": _random(0, 5, 4)}, {"w": _random(1, 5, 4)}
    axes = {"w": ("embed", "mlp")}
    rates = [float(optimizer.learning_rate_at(step)) for step in range(6)]
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.05, 0.0, 0.0], atol=1e-9)
    start, _ = _run(optimizer, axes, params, [grads])
    later, _ = _run(optimizer, axes, params, [grads] * 2)
    if name != "adafactor_momentum":  # Whose decay does not depend on the rate.
        np.testing.assert_array_equal(start["w"], params["w"])
    assert np.abs(later["w"] - start["w"]).max() > 1e-4


def test_low_precision_parameters_keep_float32_state():
    x = jnp.ones((5, 6), jnp.bfloat16)
    transform = _ALL["adafactor"].build(("embed", "mlp"))
    updates, state = transform.update(x, transform.init(x), x)
    assert {leaf.dtype for leaf in state.param_states.values()} == {
        jnp.dtype("float32")
    }
    assert updates.dtype == jnp.float32


_SCHEMES = [
    ("data_parallel", 1),
    ("tensor_parallel", 2),
    ("fully_sharded", 1),
    ("2d", 2),
    ("2d_sequence", 2),
]


@pytest.mark.parametrize("name", ["adafactor_momentum", "lamb"])
@pytest.mark.parametrize(("scheme", "model"), _SCHEMES)
def test_sharded_update_equals_the_unsharded_one(scheme, model, name):
    optimizer = _ALL[name]
    axes = {
        "wi": {"kernel": ("layers", "embed", "mlp")},
        "embedding": ("vocab", "embed"),
        "norm": {"scale": ("layers", "embed")},
    }
    shapes = {
        "wi": {"kernel": (3, 8, 12)},
        "embedding": (6, 8),
        "norm": {"scale": (3, 8)},
    }

    def make(seed):
        is_leaf = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
        return jax.tree.map(lambda s: _random(seed, *s), shapes, is_leaf=is_leaf)

    params, grads = make(0), [make(1), make(2)]
    expected, expected_state = _run(optimizer, axes, params, grads)

    partitioner = partitioning.Partitioner(scheme=scheme, model=model)
    transform = optimizer.build(axes)
    abstract = jax.eval_shape(transform.init, params)
    of_params = partitioner.shardings(axes, params)
    of_state = partitioner.shardings(optimizer.state_axes(params, axes), abstract)

    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with partitioner.scope():
        step = jax.jit(
            step,
            in_shardings=(of_params, of_state, of_params),
            out_shardings=(of_params, of_state),
            donate_argnums=(0, 1),
        )
        got = jax.device_put(params, of_params)
        state = jax.jit(transform.init, out_shardings=of_state)(got)
        for grad in grads:
            got, state = step(got, state, jax.device_put(grad, of_params))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        (got, state),
        (expected, expected_state),
    )


@pytest.mark.parametrize("name", _ALL)
def test_moments_are_sharded_like_their_parameter(name):
    optimizer = _ALL[name]
    axes = {"wi": {"kernel": ("layers", "embed", "mlp")}}
    shapes = {"wi": {"kernel": jax.ShapeDtypeStruct((3, 8, 12), jnp.float32)}}
    state = jax.eval_shape(optimizer.build(axes).init, shapes)
    partitioner = partitioning.Partitioner(scheme="2d", model=2)
    shardings = partitioner.shardings(optimizer.state_axes(shapes, axes), state)
    placed = zip(jax.tree.leaves(shardings), jax.tree.leaves(state), strict=True)
    sizes = [(s.shard_shape(x.shape), x.size) for s, x in placed if x.shape]
    held = sum(4 * math.prod(shard) for shard, _ in sizes)
    whole = sum(4 * size for _, size in sizes)
    factors = {"v_row": (4, 3 * 8 * 4), "v_col": (2, 3 * 12 * 4)}
    if name.startswith("adafactor") and name != "adafactor_plain":
        # v_row lies over "data" (4 devices) only, v_col over "model" (2) only.
        rest = whole - sum(size for _, size in factors.values())
        assert held == rest // 8 + sum(size // n for n, size in factors.values())
    else:
        assert held == whole // 8


@pytest.mark.parametrize("name", _ALL)
def test_update_is_written_into_the_donated_parameters_and_state(name):
    axes, params = {"w": ("layers", "embed", "mlp")}, {"w": _random(0, 3, 8, 12)}
    transform = _ALL[name].build(axes)
    state = transform.init(params)

    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    memory = jitted.lower(params, state, params).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes >= held


@pytest.mark.parametrize(
    ("kind", "name", "value", "limit"),
    [
        (algorithms.AdamW, "learning_rate", -0.1, "at least 0"),
        (algorithms.AdamW, "b1", 2.0, "at least 0 and below 1"),
        (algorithms.Lamb, "b2", 1.0, "at least 0 and below 1"),
        (algorithms.AdamW, "eps", 0.0, "more than 0"),
        (algorithms.AdamW, "weight_decay", -0.1, "at least 0"),
        (algorithms.AdamW, "clip_norm", 0.0, "more than 0"),
        (algorithms.Adafactor, "beta1", 1.5, "at least 0 and below 1"),
        (algorithms.Adafactor, "clipping_threshold", 0.0, "more than 0"),
    ],
)
def test_number_that_no_optimizer_works_with_is_refused(kind, name, value, limit):
    said = rf"{kind.__name__}\.{name}={value}: must be {limit}\."
    with pytest.raises(ValueError, match=said):
        kind(**{"learning_rate": 0.1} | {name: value})
