"""Three steps of Adafactor against arrays that T5X itself wrote.

The files hold a packed batch, the initial state, the logits, three losses (sums over
target tokens) and the state after three steps. The learning rate was 0.01: T5's
1/sqrt(max(step, 10,000)); the loss has T5X's z-loss of 1e-4.
"""

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import partitioning
from prottrans_jax.kernels import distance_bias, softmax_attention
from prottrans_jax.layers import attention, relative_bias
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5
from prottrans_jax.optimizers import algorithms, schedules

_UNROLLED = compute_config.ComputeConfig(scan_layers=False)
_CONFIG = t5.T5Config(
    vocab_size=128,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=64,
    d_model=128,
    d_ff=128,
    dropout_rate=0.0,
)


def _load(shared, name):
    with np.load(shared / "data" / "interop" / "t5x_golden" / name) as arrays:
        return dict(arrays)


def _under(arrays, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


@pytest.fixture
def queries_without_keys_average(monkeypatch):
    """One decoder segment of the batch has no encoder segment.

    T5X adds -1e10 to scores that are masked, which rounds all of them to -1e10: such a
    query averages over all keys of its row, while gradients still pass to the scores.
    Ours gets zeros.
    """
    ours = attention.dot_product_attention

    def as_t5x(query, key, value, *, q_segments, kv_segments, causal, bias, **others):
        arguments = {"causal": causal, "bias": bias, **others}
        out = ours(
            *(query, key, value),
            q_segments=q_segments,
            kv_segments=kv_segments,
            **arguments,
        )
        mask = softmax_attention.make_mask(q_segments, kv_segments, causal=causal)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        if isinstance(bias, distance_bias.DistanceBias):
            bias = bias.block(0, 0, query.shape[1], key.shape[1])
        scores = scores if bias is None else scores + bias
        weights = jax.nn.softmax(scores - jax.lax.stop_gradient(scores))
        average = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return jnp.where(mask.any(axis=-1)[:, 0, :, None, None], out, average)

    monkeypatch.setattr(attention, "dot_product_attention", as_t5x)


def _three_steps(forward, params, axes, batch):
    """Logits at step 0, the losses, and parameters and optimizer state at step 3."""

    def loss_fn(params):
        logits = forward(params)
        targets = batch["decoder_target_tokens"][..., None]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets, -1)[..., 0]
        z_loss = 1e-4 * jax.nn.logsumexp(logits, axis=-1) ** 2
        return ((z_loss - log_p) * batch["decoder_loss_weights"]).sum(), logits

    optimizer = algorithms.Adafactor(learning_rate=schedules.InverseSqrt(0.01, 10_000))
    transform = optimizer.build(axes)

    @jax.jit
    def step(params, state):
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, loss, logits

    state, losses, first = transform.init(params), [], None
    for _ in range(3):
        params, state, loss, logits = step(params, state)
        first = logits if first is None else first
        losses.append(loss)
    return first, np.array(losses), params, state


def _compare(arrays, got, ours_from_t5x):
    logits, losses, params, state = got
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(losses, arrays["losses"], rtol=1e-6)
    expected = _under(arrays, "step3/target/")
    params = traverse_util.flatten_dict(params, sep="/")
    state = traverse_util.flatten_dict(state.param_states, sep="/")
    before = _under(arrays, "step0/target/")
    assert len(params) == len(expected)
    slots = _under(arrays, "step3/state/param_states/")
    used = {name: value for name, value in slots.items() if value.shape != (1,)}
    assert len(state) == len(used)
    worst = {"update": 0.0, "v_row": 0.0, "v_col": 0.0, "v": 0.0}
    for name, value in expected.items():
        ours, convert = ours_from_t5x(name)
        moved = np.abs(value - before[name]).max()
        error = np.abs(params[ours] - convert(value, "param")).max() / moved
        worst["update"] = max(worst["update"], error)
        for slot in ("v_row", "v_col", "v"):
            if f"{name}/{slot}" in used:
                target = convert(used[f"{name}/{slot}"], slot)
                assert state[f"{ours}/{slot}"].shape == target.shape
                error = np.abs(state[f"{ours}/{slot}"] - target).max() / target.max()
                worst[slot] = max(worst[slot], error)
    print("losses", np.abs(losses / arrays["losses"] - 1).max(), "worst", worst)
    # Relative to the largest change of that parameter, and to its largest moment.
    assert worst["update"] < 5e-5
    assert max(worst[slot] for slot in ("v_row", "v_col", "v")) < 1e-5


def test_unscanned_model_follows_t5x(shared, queries_without_keys_average):
    arrays = _load(shared, "t5x_golden_t5v10_unscanned.npz")
    batch = jax.device_put(_under(arrays, "batch/"))
    model = t5.T5(_CONFIG, _UNROLLED)
    boxed = jax.eval_shape(
        lambda key: model.init(
            key,
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            deterministic=True,
        ),
        jax.random.key(0),
    )["params"]
    params = traverse_util.unflatten_dict(_under(arrays, "step0/target/"), sep="/")
    assert jax.tree.structure(params) == jax.tree.structure(nn.unbox(boxed))

    def forward(params):
        return model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            deterministic=True,
        )

    got = _three_steps(forward, params, partitioning.logical_axes(boxed), batch)
    _compare(arrays, got, lambda name: (name, lambda value, slot: value))


# T5X's stack has the layers second, and heads apart; ours [layers, embed, joined_kv].
# Per kernel: axes there, and names here.
_SCANNED = {
    "query": ("dlhk", ("embed", "joined_kv")),
    "key": ("dlhk", ("embed", "joined_kv")),
    "value": ("dlhk", ("embed", "joined_kv")),
    "out": ("hlkd", ("joined_kv", "embed")),
    "wi": ("dlf", ("embed", "mlp")),
    "wo": ("fld", ("mlp", "embed")),
}


def _scanned_axes(name):
    kind = name.split("/")[-2]
    if kind in _SCANNED:
        return _SCANNED[kind][1]
    if name.endswith("rel_embedding"):
        return ("heads", "relpos_buckets")
    return ("vocab", "embed") if name.endswith("embedding") else ("embed",)


def _ours_from_scanned(name):
    """Our name of a T5X parameter, and how its arrays are laid out here."""
    if not name.startswith(("encoder/encoder/", "decoder/decoder/")):
        return name, lambda value, slot: value
    stack = name.split("/")[0]
    ours = name.replace(f"{stack}/{stack}/", f"{stack}/layers/")
    kind = name.split("/")[-2]
    there = _SCANNED[kind][0] if kind in _SCANNED else "dlr"[: 2 + ("rel_" in name)]

    def convert(value, slot):
        gone = {"v_row": "hkf", "v_col": "d"}.get(slot, "")
        kept = [axis for axis in there if axis not in gone]
        value = np.moveaxis(value, kept.index("l"), 0)
        if "h" in kept:  # [..., heads, kv, ...] -> [..., joined_kv, ...]
            at = [axis for axis in kept if axis != "l"].index("h") + 1
            joined = value.shape[at] * value.shape[at + 1]
            value = value.reshape(*value.shape[:at], joined, *value.shape[at + 2 :])
        return value

    return ours, convert


def test_scanned_model_follows_t5x(shared, queries_without_keys_average):
    arrays = _load(shared, "t5x_golden_scalable_v10_scanned.npz")
    batch = jax.device_put(_under(arrays, "batch/"))
    flat, axes = {}, {}
    for name, value in _under(arrays, "step0/target/").items():
        ours, convert = _ours_from_scanned(name)
        flat[ours] = convert(value, "param")
        axes[ours] = (("layers",) if "/layers/" in ours else ()) + _scanned_axes(ours)
    params = traverse_util.unflatten_dict(flat, sep="/")

    # T5X's scanned stack has a relative bias per layer, ours one for all (as T5):
    # the stack is written out here around the same layers.
    def run(stack, layer, x, segments, *, encoded=None, encoded_segments=None):
        for index in range(2):
            weights = jax.tree.map(lambda w, i=index: w[i], stack["layers"])
            bias = relative_bias.RelativePositionBias(
                num_heads=2,
                num_buckets=32,
                max_distance=128,
                bidirectional=encoded is None,
            ).apply({"params": weights.pop("relpos_bias")}, 32, 32)
            seen = t5._Shared(segments, bias, encoded, encoded_segments)
            module = layer(_CONFIG, _UNROLLED, deterministic=True)
            x, _ = module.apply({"params": weights}, x, seen)
        return x

    def norm(scale, x):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def forward(params):
        table = params["token_embedder"]["embedding"]
        encoder, decoder = params["encoder"], params["decoder"]
        segments = batch["encoder_segment_ids"]
        x = table[batch["encoder_input_tokens"]]
        x = run(encoder, t5.EncoderLayer, x, segments)
        encoded = norm(encoder["encoder_norm"]["scale"], x)
        x = run(
            decoder,
            t5.DecoderLayer,
            table[batch["decoder_input_tokens"]],
            batch["decoder_segment_ids"],
            encoded=encoded,
            encoded_segments=segments,
        )
        x = norm(decoder["decoder_norm"]["scale"], x)
        return (x * 128**-0.5) @ table.T

    axes = traverse_util.unflatten_dict(axes, sep="/")
    got = _three_steps(forward, params, axes, batch)
    _compare(arrays, got, _ours_from_scanned)
