"""Gradients that sum over many positions are not rounded midway. Oracle: float32."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import transformer_xl, xlnet

ROWS, LENGTH, TARGETS = 8, 256, 224
SIZES = dict(
    vocab_size=11,
    num_layers=1,
    num_heads=2,
    head_dim=4,
    d_model=8,
    d_ff=6,
    dropout_rate=0.0,
)
FAMILIES = {
    "xlnet": (xlnet, xlnet.XLNet, xlnet.XLNetConfig(**SIZES)),
    "transformer_xl": (
        transformer_xl,
        transformer_xl.TransformerXL,
        transformer_xl.TransformerXLConfig(**SIZES, mem_length=4),
    ),
}
# Terms of both signs that nearly cancel: what is left shows every operand's rounding.
CANCELLING = ("position_bias", "type_bias", "type_embedding", "position/kernel")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_bfloat16_are_those_in_float32(family):
    module, model, config = FAMILIES[family]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (ROWS, LENGTH))
    inputs = {}
    if family == "xlnet":
        second_half = (np.arange(LENGTH) >= LENGTH // 2).astype(np.int32)
        inputs = {
            "token_types": np.broadcast_to(second_half, tokens.shape),
            "target_positions": np.stack(
                [np.sort(rng.permutation(LENGTH)[:TARGETS]) for _ in range(ROWS)]
            ),
            "factorization_ranks": rng.integers(-1, 50, tokens.shape),
        }
    tokens, inputs = jax.device_put((tokens, inputs))
    params = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32),
        module.init_params(
            config,
            jax.random.key(1),
            compute_config.ComputeConfig(scan_layers=False),
        ),
    )

    def loss(params, dtype):
        compute = compute_config.ComputeConfig(dtype=dtype, scan_layers=False)
        out = model(config, compute).apply(
            {"params": params}, tokens, deterministic=True, **inputs
        )
        # One token everywhere, so that the positions' gradients add up.
        return -jnp.sum(jax.nn.log_softmax(out.values)[..., 3])

    def gradients(dtype):
        actual = jax.jit(jax.grad(loss), static_argnums=1)(params, dtype)
        return traverse_util.flatten_dict(actual, sep="/")

    exact, ours = gradients("float32"), gradients("bfloat16")
    for name, expected in exact.items():
        error = np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected)
        assert error < (0.05 if name.endswith(CANCELLING) else 0.02), (name, error)
