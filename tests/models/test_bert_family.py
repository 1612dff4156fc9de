"""BERT, ALBERT, ELECTRA: sizes, segments, positions, neutral settings."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import layer_stacks
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import embeddings
from prottrans_jax.models import albert, bert, electra

SIZES = dict(
    vocab_size=31,
    num_layers=2,
    num_heads=3,
    head_dim=4,  # 3 heads of 4 are not d_model
    d_model=10,
    d_ff=14,
    max_length=13,
)
GENERATOR = dict(
    generator_num_layers=3,
    generator_num_heads=1,
    generator_head_dim=5,
    generator_d_model=6,
    generator_d_ff=8,
)
HEADS = dict(pooler=True, order_head=True)
# Module, configuration, model. For ELECTRA the joint one, and each by itself.
FAMILIES = {
    "bert": (bert, bert.BertConfig, bert.Bert, {**SIZES, **HEADS}),
    "albert": (
        albert,
        albert.AlbertConfig,
        albert.Albert,
        {**SIZES, **HEADS, "d_embed": 7, "num_layers": 3},
    ),
    "electra": (
        electra,
        electra.ElectraConfig,
        electra.Electra,
        {**SIZES, **GENERATOR, "d_embed": 9},
    ),
}
BATCH, LENGTH = 2, 12
# Proteins of 5 and 4 tokens, then padding.
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3] * BATCH)
FIRST, SECOND, REAL = SEGMENTS == 1, SEGMENTS == 2, SEGMENTS > 0
TYPES = np.array([[0, 0, 0, 1, 1] + [0, 0, 1, 1] + [0] * 3] * BATCH)

families = pytest.mark.parametrize("family", FAMILIES)
# Attention is the same code in all families.
families_and_attention = pytest.mark.parametrize(
    ("family", "attention"),
    [(family, "plain") for family in FAMILIES] + [("bert", "blockwise")],
)
# Compilation is most of these tests' time.
quick_jit = functools.partial(
    jax.jit,
    static_argnames="model",
    compiler_options={"xla_backend_optimization_level": 0},
)


def make_model(family, compute=None, **switches):
    _, config_class, model_class, fields = FAMILIES[family]
    config = config_class(**{**fields, **switches})
    return model_class(config, compute_config.ComputeConfig(**compute or {}))


@functools.cache
def random_params(family):
    """Unrolled parameters, all redrawn so that no scale is 1 and no bias 0."""
    init = jax.jit(FAMILIES[family][0].init_params, static_argnums=(0, 2))
    unrolled = compute_config.ComputeConfig(scan_layers=False)
    params = init(make_model(family).config, jax.random.key(0), unrolled)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        0.5 * x + 0.3 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return tree.unflatten(drawn)


def params_for(family, model):
    params = random_params(family)
    return layer_stacks.stack(params) if model.compute.scan_layers else params


def make_tokens():
    return jax.random.randint(jax.random.key(2), (BATCH, LENGTH), 1, 31)


@quick_jit
def outputs_of(model, params, tokens, rng=None, **features):
    """All float outputs of a family, each [batch, length, ...]."""
    features = {"segment_ids": SEGMENTS, "token_types": TYPES, **features}
    return apply(model, params, tokens, rng, **features)


def apply(model, params, tokens, rng=None, **features):
    """As `outputs_of`, without `jax.jit`."""
    outputs = model.apply(
        {"params": params},
        tokens,
        **{name: jnp.asarray(x) for name, x in features.items()},
        deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    return {jax.tree_util.keystr(path): x for path, x in leaves}


@quick_jit
def outputs_and_grads(model, params, tokens):
    def loss(params):
        features = {"segment_ids": SEGMENTS, "token_types": TYPES}
        outputs = apply(model, params, tokens, **features)
        weighted = [x[REAL] for x in outputs.values()]
        return sum(jnp.mean(jnp.sin(x)) for x in weighted), weighted

    grads, outputs = jax.grad(loss, has_aux=True)(params)
    return outputs, grads


def assert_trees_close(ours, expected, atol):
    def close(path, x, y):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(close, ours, expected)


def count(shapes):
    return sum(x.size for x in jax.tree.leaves(shapes))


# Elnaggar et al. 2021: float32 parameters of the released files are these times four,
# which tells the shapes that the papers leave open.
LARGE = dict(
    vocab_size=30,
    num_layers=30,
    num_heads=16,
    head_dim=64,
    d_model=1024,
    d_ff=4096,
    max_length=40_000,
)
PROT_BERT = bert.BertConfig(**LARGE, pooler=True)
PROT_ALBERT = albert.AlbertConfig(
    vocab_size=34,
    num_layers=12,
    num_heads=64,
    head_dim=64,
    d_model=4096,
    d_ff=16384,
    d_embed=128,
    max_length=40_000,
    pooler=True,
)
PROT_ELECTRA = electra.ElectraConfig(
    **LARGE,
    generator_num_layers=30,
    generator_num_heads=4,
    generator_head_dim=64,
    generator_d_model=256,
    generator_d_ff=1024,
)


@pytest.mark.parametrize(
    ("module", "config", "expected"),
    [
        (bert, PROT_BERT, 1_683_931_256 // 4),
        (albert, PROT_ALBERT, 897_356_424 // 4),
        (electra, PROT_ELECTRA.discriminator, 1_679_728_644 // 4),
        (electra, PROT_ELECTRA.generator, 260_861_048 // 4),
        # Together: the tables, 40,034 rows of 1,024 with the norm, count once.
        (electra, PROT_ELECTRA, (1_679_728_644 + 260_861_048) // 4 - 40_034 * 1024),
    ],
    ids=["bert", "albert", "discriminator", "generator", "electra"],
)
def test_parameter_counts_of_the_released_models(module, config, expected):
    shapes = jax.eval_shape(lambda: module.init_params(config, jax.random.key(0)))
    assert count(shapes) == expected


@families
@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_axis_of_a_parameter_has_a_logical_name(family, scan_layers):
    model = make_model(family, {"scan_layers": scan_layers})
    boxed = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    )
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )
    for path, leaf in leaves:
        assert isinstance(leaf, nn.Partitioned), path
        assert len(leaf.names) == leaf.value.ndim
        # Nameless is only the embeddings' width where it is projected to d_model's.
        nameless = None in leaf.names
        assert nameless == ("embedding_projection" in str(path) and leaf.value.ndim > 1)


@families
def test_a_neighbour_in_the_row_changes_nothing(family):
    model, tokens = make_model(family), make_tokens()
    params = params_for(family, model)
    ours = outputs_of(model, params, tokens)
    changed = jnp.where(SECOND, (tokens + 7) % 31, tokens)
    others = outputs_of(model, params, changed)
    for name in ours:
        assert np.array_equal(ours[name][FIRST], others[name][FIRST]), name
        assert not np.array_equal(ours[name][SECOND], others[name][SECOND]), name


@families_and_attention
def test_padding_changes_no_real_residue(family, attention):
    model = make_model(family, {"attention": attention, "attention_block_size": 5})
    params, tokens = params_for(family, model), make_tokens()
    ours = outputs_of(model, params, tokens)
    others = outputs_of(
        model,
        params,
        jnp.where(REAL, tokens, (tokens + 5) % 31),
        positions=np.where(REAL, [*range(5), *range(4), 0, 0, 0], 11),
        token_types=np.where(REAL, TYPES, 1),
    )
    for name in ours:
        assert np.array_equal(ours[name][REAL], others[name][REAL]), name
        assert not np.array_equal(ours[name][~REAL], others[name][~REAL]), name


@families_and_attention
def test_a_packed_protein_is_treated_as_if_alone(family, attention):
    model = make_model(family, {"attention": attention, "attention_block_size": 5})
    params, tokens = params_for(family, model), make_tokens()
    packed = outputs_of(model, params, tokens)
    # The second protein of each row at the start of a row of its own, without pads.
    alone = outputs_of(
        model,
        params,
        tokens[:, 5:9],
        segment_ids=np.ones((BATCH, 4), int),
        token_types=TYPES[:, 5:9],
    )
    for name in packed:
        np.testing.assert_allclose(
            packed[name][:, 5:9], alone[name], rtol=0, atol=2e-6, err_msg=name
        )


def test_positions_count_from_the_start_of_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 4, 4]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3], [0, 1, 0, 3, 0, 1]]
    assert embeddings.positions_in_segments(segments).tolist() == expected


def test_rows_longer_than_the_table_are_refused():
    model = make_model("bert")
    params, tokens = params_for("bert", model), jnp.ones((1, 14), jnp.int32)
    features = {"segment_ids": tokens, "token_types": 0 * tokens}
    with pytest.raises(ValueError, match=r"14 positions, more than max_length=13"):
        outputs_of(model, params, tokens, **features)
    # With positions of its own a longer row of shorter pieces is taken; one that the
    # table lacks does not become another one in silence.
    for positions, finite in ((jnp.arange(14) % 7, True), (jnp.arange(14), False)):
        outputs = outputs_of(
            model, params, tokens, positions=positions[None], **features
        )
        assert np.isfinite(outputs[".encoded"]).all() == finite


@pytest.mark.parametrize(
    ("family", "compute"),
    [
        ("bert", dict(scan_layers=False, remat_policy="save_outputs")),
        ("bert", dict(attention="blockwise", attention_block_size=5)),
        ("bert", dict(remat_policy="minimal")),
        ("albert", dict(scan_layers=False)),
        ("albert", dict(remat_policy="full")),
        ("electra", dict(remat_policy="full")),
    ],
    ids=str,
)
def test_settings_that_change_only_speed_and_memory(family, compute):
    tokens, base = make_tokens(), make_model(family)
    model = make_model(family, compute)
    outputs, grads = outputs_and_grads(model, params_for(family, model), tokens)
    expected, expected_grads = outputs_and_grads(base, params_for(family, base), tokens)
    if not model.compute.scan_layers:
        grads = layer_stacks.stack(grads)
    assert_trees_close(outputs, expected, 5e-6)
    assert_trees_close(grads, expected_grads, 2e-6)


@pytest.mark.parametrize(
    "family", ["bert", pytest.param("electra", marks=pytest.mark.slow)]
)
def test_bfloat16_is_close_and_keeps_parameters_in_float32(family):
    tokens, base = make_tokens(), make_model(family)
    model = make_model(family, {"dtype": "bfloat16"})
    params = params_for(family, model)
    exact, exact_grads = outputs_and_grads(base, params, tokens)
    rough, grads = outputs_and_grads(model, params, tokens)
    for x, y in zip(rough, exact, strict=True):
        assert 0 < np.abs(x - y).max() < 0.2
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    norms = [
        np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(jnp.subtract, grads, exact_grads), exact_grads)
    ]
    assert norms[0] < 0.1 * norms[1]


def test_dropout_is_drawn_anew_in_each_layer_and_off_by_default():
    model = make_model("albert", dropout_rate=0.5, attention_dropout_rate=0.0)
    params, tokens = params_for("albert", model), make_tokens()
    still = outputs_of(model, params, tokens)
    base = outputs_of(make_model("albert"), params, tokens)
    one, two, again = (
        outputs_of(model, params, tokens, jax.random.key(seed)) for seed in (1, 2, 1)
    )
    name = ".encoded"
    assert np.array_equal(still[name], base[name])
    assert np.array_equal(one[name], again[name])
    assert not np.array_equal(one[name], two[name])
    # One layer applied twice to a constant stream: were the masks of both layers the
    # same, so would be the zeros of what both add.
    _, variables = model.apply(
        {"params": params},
        tokens,
        deterministic=False,
        rngs={"dropout": jax.random.key(3)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        mutable="intermediates",
    )
    layer = variables["intermediates"]["encoder"]["layer"]
    dropped = [x == 0 for x in jax.tree.leaves(layer["Dropout_0"])]
    assert len(dropped) == 2  # after attention and after the MLP
    assert not np.array_equal(*dropped)
    for masks in dropped:
        assert 0.3 < masks.mean() < 0.7
        assert not np.array_equal(masks[0], masks[1])


def test_albert_with_equal_layers_written_out_is_bert():
    """Parameters shared by all layers act as copies of them in every layer."""
    model = make_model("albert", d_embed=10, d_model=10)
    params = params_for("albert", model)
    params = jax.tree.map(lambda x: x, params)  # a copy to change
    shapes = jax.eval_shape(lambda: albert.init_params(model.config, jax.random.key(0)))
    keys = iter(jax.random.split(jax.random.key(5), 100))
    params = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(next(keys), x.shape), shapes
    )
    # ALBERT projects its embeddings even where they are as wide as the stream.
    projection = params["encoder"]["embedding_projection"]
    projection["kernel"], projection["bias"] = jnp.eye(10), jnp.zeros(10)
    layer = params["encoder"]["layer"]
    copies = {f"layers_{i}": layer for i in range(model.config.num_layers)}
    as_bert = {**params, "encoder": copies}
    tokens = make_tokens()
    bert_model = make_model(
        "bert", {"scan_layers": False}, num_layers=3, activation="gelu"
    )
    ours = outputs_of(model, params, tokens)
    theirs = outputs_of(bert_model, as_bert, tokens)
    assert_trees_close(ours, theirs, 5e-6)


def test_electra_is_its_halves_on_shared_embeddings():
    model, tokens = make_model("electra"), make_tokens()
    params = params_for("electra", model)
    joint = outputs_of(model, params, tokens)
    assert params["embeddings"]["token"]["embedding"].shape == (31, 9)
    halves = electra.split_params(params)
    for index, half in enumerate((model.config.generator, model.config.discriminator)):
        outputs = electra.ElectraEncoder(half).apply(
            {"params": halves[index]},
            tokens,
            segment_ids=jnp.asarray(SEGMENTS),
            token_types=jnp.asarray(TYPES),
        )
        leaves = jax.tree_util.tree_leaves_with_path(outputs)
        assert len(leaves) == 2
        for path, x in leaves:
            expected = joint[f"[{index}]{jax.tree_util.keystr(path)}"]
            np.testing.assert_allclose(x, expected, rtol=0, atol=5e-6)
    joined = electra.join_params(*halves)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, joined, params))
    other = jax.tree.map(lambda x: x + 1, halves[0])
    with pytest.raises(ValueError, match=r"embeddings.*were not trained together"):
        electra.join_params(other, halves[1])


def test_unknown_or_impossible_switches_are_refused():
    with pytest.raises(ValueError, match=r"remat_policy='half'.*minimal"):
        compute_config.ComputeConfig(remat_policy="half")
    with pytest.raises(ValueError, match="gelu_exact"):
        make_model("albert", activation="gelu_new")
    with pytest.raises(ValueError, match="needs pooler=True"):
        make_model("bert", pooler=False)


@families
def test_flops_are_those_of_the_traced_products(family):
    """Counted in the forward pass's own dot products, which XLA cannot hide."""
    model = make_model(family, {"scan_layers": False}, vocab_size=2048)
    module = FAMILIES[family][0]
    tokens = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(
        lambda: module.init_params(model.config, jax.random.key(0), model.compute)
    )
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params}, tokens))(
        shapes
    )

    def count_products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                contracted = equation.params["dimension_numbers"][0][0]
                left = equation.invars[0].aval.shape
                size = np.prod([left[axis] for axis in contracted])
                total += 2 * size * np.prod(equation.outvars[0].aval.shape)
            if equation.primitive.name == "cond":  # one branch a platform
                total += count_products(equation.params["branches"][-1].jaxpr)
                continue
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += count_products(inner)
        return total

    # The tables of two token types: one small product per use of the embeddings.
    d_embed = getattr(model.config, "d_embed", model.config.d_model)
    uses = 2 if family == "electra" else 1
    types = uses * 2 * 8 * 2 * d_embed
    assert module.forward_flops(model.config, 8) == count_products(jaxpr.jaxpr) - types
