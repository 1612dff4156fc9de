"""BERT-like models on a mesh: same loss and gradients as on one device."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import partitioning
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import albert, bert, electra
from prottrans_jax.objectives import masked_lm, replaced_token_detection

SIZES = dict(
    vocab_size=30,  # which four devices do not divide
    num_layers=2,
    num_heads=4,
    head_dim=6,
    d_model=16,
    d_ff=24,
    max_length=21,
)
GENERATOR = dict(
    generator_num_layers=1,
    generator_num_heads=4,
    generator_head_dim=2,
    generator_d_model=8,
    generator_d_ff=12,
)
HEADS = dict(pooler=True, order_head=True)


def make_objective(family):
    if family == "electra":
        model = electra.Electra(electra.ElectraConfig(**SIZES, **GENERATOR))
        return replaced_token_detection.ReplacedTokenDetection(model)
    if family == "bert":
        config = bert.BertConfig(**SIZES, **HEADS)
        compute = compute_config.ComputeConfig(remat_policy="minimal")
        return masked_lm.MaskedLM(bert.Bert(config, compute), sentence_order_weight=1.0)
    config = albert.AlbertConfig(**SIZES, **HEADS, d_embed=8)
    return masked_lm.MaskedLM(albert.Albert(config), sentence_order_weight=1.0)


def make_batch():
    rng = np.random.default_rng(0)
    shape = (8, 10)
    segments = np.broadcast_to([1] * 4 + [2] * 4 + [0] * 2, shape)
    starts = np.broadcast_to([1, 0, 0, 0] * 2 + [0] * 2, shape)
    predicted = (segments > 0) & (rng.random(shape) < 0.5)
    return {
        "input_tokens": rng.integers(1, 30, shape).astype(np.int32),
        "target_tokens": rng.integers(1, 30, shape).astype(np.int32),
        "corrupted": predicted.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "positions": np.broadcast_to([0, 1, 2, 3] * 2 + [0] * 2, shape),
        "token_types": np.broadcast_to([0, 0, 1, 1] * 2 + [0] * 2, shape),
        "order_targets": rng.integers(0, 2, shape).astype(np.int32),
        "loss_weights": predicted.astype(np.float32),
        "order_weights": starts.astype(np.float32),
    }


@pytest.mark.parametrize(
    ("family", "scheme", "data", "model"),
    [
        ("bert", "2d", 2, 4),
        ("albert", "2d", 4, 2),
        ("electra", "tensor_parallel", 4, 2),
    ],
)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(family, scheme, data, model):
    objective, batch = make_objective(family), make_batch()
    shapes = {name: x.shape for name, x in batch.items()}
    boxed = jax.jit(functools.partial(objective.init, batch_shapes=shapes))(
        jax.random.key(1)
    )
    params = jax.tree.map(lambda x: 5 * x, nn.unbox(boxed))

    # Both are needed for virtual devices, see the mesh test of T5.
    @functools.partial(
        jax.jit,
        compiler_options={
            "xla_cpu_enable_concurrency_optimized_scheduler": False,
            "xla_backend_optimization_level": 0,
        },
    )
    def step(params, batch):
        def loss(params):
            normalizers = objective.normalizers(batch)
            rng = jax.random.key(3)
            return objective(params, batch, normalizers, (), rng, train=False)[0]

        return jax.value_and_grad(loss)(params)

    loss, grads = step(params, batch)
    partitioner = partitioning.Partitioner(
        scheme=scheme, data=data, model=model, num_devices=8
    )
    axes = partitioning.logical_axes(boxed)
    sharded = jax.device_put(params, partitioner.shardings(axes, params))
    with partitioner.scope():
        placed = jax.device_put(batch, partitioner.batch_sharding)
        mesh_loss, mesh_grads = step(sharded, placed)
    cut = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(mesh_grads)]
    assert sum(cut) > len(cut) / 3
    np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
    largest = max(jnp.abs(x).max() for x in jax.tree.leaves(grads))
    for ours, expected in zip(
        jax.tree.leaves(mesh_grads), jax.tree.leaves(grads), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * largest)
