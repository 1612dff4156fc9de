"""Which GPUs a process takes, by the environment of its launcher."""

import os
import subprocess
import sys

import pytest

from cases import process_cases
from prottrans_jax.distributed import local_devices


def slurm(tasks, local_id, nodes=1, **more):
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(local_id),
        "SLURM_LOCALID": str(local_id),
        "SLURM_STEP_NUM_NODES": str(nodes),
        **{name: str(value) for name, value in more.items()},
    }


def ids(environ):
    choice = local_devices.choose(environ)
    return None if choice is None else choice.ids


def test_one_task_on_a_node_takes_all_gpus_it_sees():
    assert ids(slurm(1, 0, CUDA_VISIBLE_DEVICES="0,1,2,3")) == (0, 1, 2, 3)
    assert ids(slurm(3, 0, nodes=3, CUDA_VISIBLE_DEVICES="4,5")) == (0, 1)
    assert ids(slurm(1, 0)) == ()  # all, however many there are


def test_a_task_with_one_gpu_bound_takes_it_whatever_its_local_id():
    assert ids(slurm(4, 3, CUDA_VISIBLE_DEVICES="0")) == (0,)
    assert ids(slurm(4, 3, CUDA_VISIBLE_DEVICES="GPU-8f2a")) == (0,)


def test_a_task_with_several_gpus_bound_takes_them():
    bound = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert ids(slurm(2, 1, **bound, SLURM_GPUS_PER_TASK=2)) == (0, 1)
    assert ids(slurm(2, 1, **bound, SLURM_GPUS_ON_NODE=4)) == (0, 1)
    assert ids(slurm(4, 2, **bound)) == (0, 1)


def test_tasks_that_see_the_same_gpus_divide_them_by_local_id():
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert [ids(slurm(4, n, **four)) for n in range(4)] == [(0,), (1,), (2,), (3,)]
    assert [ids(slurm(2, n, **four)) for n in range(2)] == [(0, 1), (2, 3)]
    assert ids(slurm(4, 2)) == (2,)


def test_tasks_of_unequal_nodes_are_counted_by_node():
    uneven = {
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }
    assert ids(slurm(5, 1, nodes=3, SLURM_NODEID=1, **uneven)) == (2, 3)
    assert ids(slurm(5, 0, nodes=3, SLURM_NODEID=2, **uneven)) == (0, 1, 2, 3)


def test_gpus_that_stay_idle_are_told():
    three = slurm(2, 1, CUDA_VISIBLE_DEVICES="0,1,2")
    choice = local_devices.choose(three)
    assert choice.ids == (1,) and "1 stay idle" in choice.reason


def test_open_mpi_and_torchrun_are_treated_alike():
    two = {"CUDA_VISIBLE_DEVICES": "0,1"}
    alone = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    assert ids(alone | two) == (0, 1)
    second = {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert ids(second | two) == (1,)
    assert ids({"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | two) == (
        0,
        1,
    )


def test_the_inner_launcher_of_two_counts():
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    node = slurm(1, 0, **four)  # a task for the daemon of mpirun, or for torchrun
    ranks = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert ids(node | ranks) == (1,)
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "2"}
    assert ids(node | torchrun | {"LOCAL_WORLD_SIZE": "4"}) == (2,)


def test_the_shell_of_a_batch_script_is_no_task():
    shell = slurm(4, 0, CUDA_VISIBLE_DEVICES="0,1,2,3")
    del shell["SLURM_STEP_NODELIST"]
    assert ids(shell) is None


def test_the_users_own_choice_and_other_launchers_are_left_to_jax():
    assert ids(slurm(1, 0) | {local_devices.OVERRIDE: "2"}) is None
    assert ids({"CUDA_VISIBLE_DEVICES": "0,1"}) is None


VISIBLE = """
import sys
from jax._src import xla_bridge
from prottrans_jax.distributed import start
start.initialize(*sys.argv[1:2], *map(int, sys.argv[2:]), timeout_s=30)
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


@pytest.mark.parametrize(
    ("arguments", "local_id", "visible", "taken"),
    [
        (["auto"], 0, "0,1,2,3", "0,1,2,3"),
        (["localhost:PORT", 1, 0], 0, "0,1,2,3", "0,1,2,3"),
        (["localhost:PORT"], 0, "0,1,2,3", "0,1,2,3"),  # SLURM tells the rest
        (["localhost:PORT", 1, 0], 1, "0", "0"),  # one GPU bound
        ([], 0, "0,1,2,3", "all"),  # one process, which does not join
    ],
)
def test_jax_is_told_which_gpus_to_take(arguments, local_id, visible, taken):
    port = str(process_cases.free_port())
    arguments = [str(argument).replace("PORT", port) for argument in arguments]
    job = slurm(1, local_id, CUDA_VISIBLE_DEVICES=visible, SLURM_JOB_ID=os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", VISIBLE, *arguments],
        env=os.environ | job | {"JAX_PLATFORMS": "cpu", "SLURM_PROCID": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == [taken], done.stderr
