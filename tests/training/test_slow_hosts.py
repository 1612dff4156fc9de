"""Hosts that are not equally fast."""

import time

import pytest

from cases import process_cases, runs, trainer_cases
from drills import processes
from prottrans_jax import partitioning
from prottrans_jax.distributed import start
from prottrans_jax.training import trainer

# A collective on CPUs waits 30 s.
LATE_S = 40


def train(folder, coordinator, process):
    """Two steps in two processes, of which the second compiles `LATE_S` longer."""
    start.initialize(coordinator, 2, process, timeout_s=120)
    compile = trainer._Run.compile

    def compile_late(run, state):
        compiled = compile(run, state)
        time.sleep(LATE_S * process)
        return compiled

    trainer._Run.compile = compile_late
    partitioner = partitioning.Partitioner(num_devices=2)
    summary = runs.train(
        **trainer_cases.arguments(folder, partitioner=partitioner, total_steps=2)
    )
    return summary.exit_code


@pytest.mark.slow
def test_a_host_that_compiles_longer_is_waited_for(tmp_path):
    coordinator = f"localhost:{process_cases.free_port()}"
    started = [
        processes.Process(
            train,
            (tmp_path, coordinator, number),
            tmp_path / f"{number}.log",
            env={"XLA_FLAGS": ""},
        )
        for number in range(2)
    ]
    codes = [process.wait(300) for process in started]
    assert codes == [0, 0], started[0].output()[-3000:]
