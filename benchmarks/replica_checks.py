"""Cost of comparing the replicas of parameters (`run_settings.ReplicaChecks`).

    python benchmarks/replica_checks.py --gin_file=sample.gin --devices=4

Times the training step of a leaf on virtual devices of this CPU, and the fold of all
its parameters, and prints the share of the fold in the time of N steps.
"""

import argparse
import os
import statistics
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)

import jax

from prottrans_jax.config import building
from prottrans_jax.training import (
    replicas,
    train_state,
    train_step,
    trainer,
)


def seconds(function, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Prints both times and the share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default="sample.gin")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--period", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    building.parse(
        [flags.gin_file], ["MODEL_DIR = 'unused'", f"NUM_DEVICES = {flags.devices}"]
    )
    run = {
        name: building.build(value)
        for name, value in building.bound(trainer.train).items()
        if name not in ("eval_data", "model_dir")
    }
    data, partitioner = run["train_data"], run["partitioner"]
    shapes = train_state.batch_shapes(data)
    plan = train_state.plan(run["objective"], run["optimizer"], partitioner, shapes)
    step = train_step.make_train_step(
        plan, seed=0, num_microbatches=run["num_microbatches"]
    )
    rows = data.batch(0, rows=partitioner.host_rows(data.batch_size))
    batch = partitioner.put_batch(rows, data.batch_size)
    with partitioner.scope():
        state = train_state.initialize(plan, seed=0)
        compiled = step.lower(state, plan.abstract_batch(plan.batch_shapes)).compile()

        def train():
            nonlocal state
            state, outputs = compiled(state, batch)
            return outputs

        step_s = seconds(train, flags.repeats)
    check = replicas.ReplicaCheck(
        partitioner.mesh, plan.shapes.params, plan.shardings.params
    )
    jax.block_until_ready(check.fold(state.params))  # Compiles.
    fold_s = seconds(lambda: check.fold(state.params), flags.repeats)
    share = fold_s / (flags.period * step_s)
    print(
        f"{flags.gin_file}, {plan.num_params:,} parameters on {flags.devices} devices: "
        f"step {1000 * step_s:.0f} ms, comparison {1000 * fold_s:.1f} ms, "
        f"{share:.4%} of the time at a period of {flags.period} steps."
    )


if __name__ == "__main__":
    main()
