"""Memories between steps: on meshes, in microbatches, checkpoints and evaluation."""

import jax
import numpy as np
import pytest

from cases import loader_cases, runs
from prottrans_jax import partitioning
from prottrans_jax.checkpoints import checkpointing
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import transformer_xl, xlnet
from prottrans_jax.objectives import causal_lm, permutation_lm
from prottrans_jax.optimizers import algorithms
from prottrans_jax.training import evaluation, train_state, train_step

LENGTH, BATCH, MEMORIES = 6, 8, 5
SIZES = dict(
    vocab_size=23,
    num_layers=2,
    num_heads=2,
    head_dim=6,
    d_model=16,
    d_ff=24,
    mem_length=MEMORIES,
)


class Lanes(loader_cases.Rows):
    """Rows of proteins of 15 tokens that go on in the next batch."""

    vocab_size = 23
    batch_size = BATCH

    def features(self, index, rng):
        place = index * LENGTH + np.arange(LENGTH) + np.arange(BATCH)[:, None]
        predicted = rng.random((BATCH, LENGTH)) < 0.4
        return {
            "input_tokens": rng.integers(0, 23, (BATCH, LENGTH)),
            "target_tokens": rng.integers(0, 23, (BATCH, LENGTH)),
            "loss_weights": predicted.astype(np.float32),
            "segment_ids": place // 15 + 1,
            "positions": place % 15,
            "token_types": np.zeros((BATCH, LENGTH)),
            "factorization_ranks": np.where(predicted, place % 7, -1),
        }


def make_objective(kind, dtype="float32", **options):
    compute = compute_config.ComputeConfig(dtype=dtype)
    if kind == "causal":
        config = transformer_xl.TransformerXLConfig(**SIZES, **options)
        return causal_lm.CausalLM(transformer_xl.TransformerXL(config, compute))
    config = xlnet.XLNetConfig(**SIZES, **options)
    return permutation_lm.PermutationLM(
        xlnet.XLNet(config, compute), max_targets=4, memories=True
    )


def run_steps(objective, partitioner, num_steps, num_microbatches=1):
    """State after some steps, and the loss sums of the last."""
    optimizer = algorithms.AdamW(learning_rate=1e-2)
    data = Lanes()
    shapes = train_state.batch_shapes(data)
    plan = train_state.plan(objective, optimizer, partitioner, shapes)
    step = train_step.make_train_step(plan, seed=0, num_microbatches=num_microbatches)
    with partitioner.scope():
        state = train_state.initialize(plan, seed=1)
        for index in range(num_steps):
            batch = data.batch(index, partitioner.host_rows(BATCH))
            state, outputs = step(state, partitioner.put_batch(batch, BATCH))
    return state, outputs["sums"]["loss"]


@pytest.mark.parametrize("kind", ["causal", "permutation"])
def test_meshes_and_microbatches_remember_the_same(kind):
    objective = make_objective(kind, dropout_rate=0.0)
    one = partitioning.Partitioner(num_devices=1)
    expected, loss = run_steps(objective, one, 3)
    assert np.abs(expected.carry["states"]).min(axis=(1, 3)).max() > 0
    mesh = partitioning.Partitioner(scheme="2d", data=2, model=2, num_devices=4)
    for partitioner, num_microbatches in ((mesh, 1), (one, 4)):
        state, sums = run_steps(objective, partitioner, 3, num_microbatches)
        np.testing.assert_allclose(sums, loss, rtol=1e-4)
        assert np.array_equal(state.carry["segments"], expected.carry["segments"])
        np.testing.assert_allclose(
            state.carry["states"], expected.carry["states"], rtol=0, atol=1e-4
        )
        if partitioner is mesh:
            shape = (BATCH // 2, 2, MEMORIES, 16)
            states = state.carry["states"]
            assert states.addressable_shards[0].data.shape == shape
            # Parameters are cut as well: every axis has a name that the table knows.
            kernel = state.params
            kernel = kernel["decoder" if kind == "causal" else "encoder"]
            kernel = kernel["layers"]["attention"]["position"]["kernel"]
            assert kernel.addressable_shards[0].data.shape == (2, 8, 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_run_has_the_memories_of_an_unbroken_run(tmp_path, dtype):
    objective = make_objective("causal", dtype=dtype)
    arguments = dict(
        objective=objective,
        train_data=Lanes(),
        eval_data={"validation": Lanes(seed=1, num_batches=2)},
        optimizer=algorithms.AdamW(learning_rate=1e-2),
        partitioner=partitioning.Partitioner(num_devices=2),
        evaluation_period=4,
        checkpoints_period=2,
        logs_period=3,
        num_microbatches=2,
        seed=5,
    )
    runs.train(**arguments, model_dir=str(tmp_path / "whole"), total_steps=4)
    for total_steps in (3, 4):
        runs.train(
            **arguments, model_dir=str(tmp_path / "parts"), total_steps=total_steps
        )

    def final(name):
        saver = checkpointing.Checkpointer(
            tmp_path / name / "checkpoints", read_only=True
        )
        plan = runs.plan(**arguments)
        return jax.tree.map(np.asarray, saver.restore(plan.abstract).state)

    whole, parts = final("whole"), final("parts")
    assert whole.carry["states"].dtype == dtype
    assert np.abs(np.float32(whole.carry["states"])).max() > 0
    assert whole.carry["segments"].min() > 0
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_evaluation_carries_memories_from_batch_to_batch():
    objective = make_objective("causal", dropout_rate=0.0)
    partitioner = partitioning.Partitioner(num_devices=2)
    data = Lanes(num_batches=2)
    shapes = train_state.batch_shapes(data)
    plan = train_state.plan(
        objective, algorithms.AdamW(learning_rate=1e-2), partitioner, shapes
    )
    with partitioner.scope():
        params = train_state.initialize(plan, seed=1).params
        # Far from where memories hardly matter.
        params = jax.tree.map(lambda x: 10 * x, params)
        result = evaluation.Evaluator(plan, {"": data})(params)[""]
    carry, sums = objective.initial_carry(BATCH), []
    for index in range(2):
        batch = jax.device_put(data.batch(index))
        _, (metrics, carry) = objective(
            params,
            batch,
            objective.normalizers(batch),
            carry,
            jax.random.key(0),
            train=False,
        )
        sums.append(metrics["loss"])
    total, weight = np.sum(sums, axis=0)
    np.testing.assert_allclose(result["loss"], total / weight, rtol=1e-5)
    _, (without, _) = objective(
        params,
        batch,
        objective.normalizers(batch),
        objective.initial_carry(BATCH),
        jax.random.key(0),
        train=False,
    )
    assert abs(without["loss"][0] - sums[1][0]) > 1e-3 * sums[1][0]
