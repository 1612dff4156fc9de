"""T5 on a mesh: logical constraints inside scan and rematerialisation."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import partitioning
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5


@pytest.mark.parametrize(
    "options", [dict(remat_policy="minimal"), dict(dtype="bfloat16")], ids=str
)
def test_four_by_two_devices_give_the_loss_and_gradients_of_one(options):
    config = t5.T5Config(
        vocab_size=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=6,
        d_model=16,
        d_ff=24,
    )
    tokens = jax.random.randint(jax.random.key(0), (8, 10), 0, 32)
    segments = jnp.asarray([[1] * 4 + [2] * 4 + [0] * 2] * 8)
    compute = compute_config.ComputeConfig(**options)
    model = t5.T5(config, compute)

    def init(key):
        return model.init(key, tokens, tokens, deterministic=True)["params"]

    # Without this jax 0.10.2 orders the collectives of virtual CPU devices differently
    # on each of them: a bfloat16 step then hangs, and aborts after 40 s, now and then.
    @functools.partial(
        jax.jit,
        compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False},
    )
    def step(params, tokens, segments):
        def loss(params):
            logits = model.apply(
                {"params": params},
                tokens,
                tokens,
                encoder_segment_ids=segments,
                decoder_segment_ids=segments,
                deterministic=True,
            )
            return jnp.mean(jnp.square(logits))

        return jax.value_and_grad(loss)(params)

    boxed = jax.jit(init)(jax.random.key(1))
    params = nn.unbox(boxed)
    loss, grads = step(params, tokens, segments)

    partitioner = partitioning.Partitioner(scheme="2d", data=4, model=2, num_devices=8)
    axes = partitioning.logical_axes(boxed)
    sharded = jax.device_put(params, partitioner.shardings(axes, params))
    with partitioner.scope():
        rows = partitioner.batch_sharding
        placed = jax.device_put((tokens, segments), rows)
        mesh_loss, mesh_grads = step(sharded, *placed)
    kernel = mesh_grads["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    if compute.dtype == jnp.bfloat16:
        # Sums in another order round differently: only the loss is close.
        np.testing.assert_allclose(mesh_loss, loss, rtol=1e-3)
        return
    np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
    for ours, expected in zip(
        jax.tree.leaves(mesh_grads), jax.tree.leaves(grads), strict=True
    ):
        limit = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=limit)
