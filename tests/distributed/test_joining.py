"""Processes that a launcher started join by themselves."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from cases import process_cases
from prottrans_jax.distributed import roll_call

JOIN = """
import os, sys
from absl import logging
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
from prottrans_jax.distributed import start
start.initialize(timeout_s=float(os.environ.get("LIMIT", 60)))
import jax
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jax.numpy.array(1 + jax.process_index()))
line = f"sum {total.sum()} processes {jax.process_count()}\\n"
os.write(1, line.encode())  # In one piece: Gloo writes too.
"""
# JAX believes that this is a TPU host, but computes on the CPU. GCE: with a metadata
# server of its own.
ON_TPU = """
import http.server, json, os, threading
import jax
class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.path.rpartition("/")[2]
        assert self.headers["Metadata-Flavor"] == "Google"
        value = json.loads(os.environ["ATTRIBUTES"]).get(key)
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())
    def log_message(self, *args):
        pass
if "ATTRIBUTES" in os.environ:
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # JAX sets it, since there is no chip.
    server = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[os.environ["VARIABLE"]] = f"localhost:{server.server_port}"
from prottrans_jax.distributed import start
environ = dict(os.environ)
del environ["JAX_PLATFORMS"]
start.initialize(timeout_s=60, environ=environ)
print("process", jax.process_index(), "of", jax.process_count())
"""


def run(program, environments):
    """Output of each process of a run; all have to succeed."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "PMIX_", "TPU_", "JAX_"))
    } | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=inherited | environment,
                )
            )
            for environment in environments
        ]
        return [process_cases.finish(process) for process in processes]


def slurm(rank, job, tasks=2):
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def open_mpi(rank, job):
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"prterun-localhost-{job}@1",
    }


def torchrun(rank, job):
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(process_cases.free_port()) if rank == 0 else "",
    }


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        (slurm, "SLURM (SLURM_PROCID={}, SLURM_STEP_NUM_TASKS=2"),
        (open_mpi, "Open MPI (OMPI_COMM_WORLD_RANK={}, OMPI_COMM_WORLD_SIZE=2"),
        (torchrun, "torchrun's variables (RANK={}, WORLD_SIZE=2"),
    ],
)
def test_processes_of_a_launcher_join_without_a_flag(launcher, name):
    # The job determines the port.
    first = launcher(0, os.getpid())
    second = launcher(1, os.getpid())
    if "MASTER_PORT" in first:
        second["MASTER_PORT"] = first["MASTER_PORT"]
    for rank, (code, output) in enumerate(run(JOIN, [first, second])):
        assert code == 0, output
        assert f"Joined as process {rank} of 2, found by {name.format(rank)}" in output
        assert "coordinator localhost:" in output and "1 local device(s)" in output
        assert "sum 3 processes 2" in output


@pytest.mark.parametrize(
    "environment",
    [
        slurm(0, 1, tasks=1),
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        {"MASTER_ADDR": "localhost"},
    ],
    ids=["one task", "sbatch without srun", "MASTER_ADDR alone"],
)
def test_a_process_without_others_starts_alone(environment):
    ((code, output),) = run(JOIN, [environment])
    assert code == 0, output
    assert "sum 1 processes 1" in output and "Joined" not in output
    assert ("not started by srun" in output) == ("SLURM_NTASKS" in environment) - (
        "SLURM_STEP_ID" in environment
    )


def test_a_task_that_misses_the_other_says_who_where_and_how_it_knows():
    environment = slurm(0, os.getpid()) | {"LIMIT": "2"}
    ((code, output),) = run(JOIN, [environment])
    assert code == roll_call.EXIT_STALLED, output
    last = output.splitlines()[-1]
    assert "after 2 s process 1 missing; here: 0 (" in last
    assert "found by SLURM (SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=2" in last
    assert "coordinator localhost:6" in last


def test_a_job_of_kubernetes_that_jax_cannot_read_ends_in_one_line():
    job = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    ((code, output),) = run(JOIN, [job])
    assert code == 1
    last = output.splitlines()[-1]
    assert "JAX cannot join the processes found by Kubernetes (KUBERNETES" in last
    assert "the package `kubernetes`" in last and "--num_processes=1" in last


@pytest.mark.parametrize("service", ["gke", "gce"])
def test_hosts_of_a_tpu_slice_join_without_a_flag(service):
    shared = {
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": str(process_cases.free_port()),
    }
    if service == "gke":
        # Empty: no multislice run. JAX would ask the metadata for what is not set.
        shared |= {
            f"MEGASCALE_{name}": ""
            for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID")
        }
        own = [
            {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": number}
            for number in "01"
        ]
    else:
        own = [
            {
                "VARIABLE": "GCE_METADATA_HOST",
                "ATTRIBUTES": json.dumps(
                    {
                        "agent-worker-number": number,
                        "tpu-env": "ZONE: 'here-1a'",
                        "worker-network-endpoints": "localhost,localhost",
                    }
                ),
            }
            for number in "01"
        ]
    for number, (code, output) in enumerate(run(ON_TPU, [shared | x for x in own])):
        assert code == 0, output
        assert f"process {number} of 2" in output


def test_a_tpu_vm_of_one_host_starts_alone():
    environment = {
        "JAX_FORCE_TPU_INIT": "1",
        "VARIABLE": "GCE_METADATA_IP",
        "ATTRIBUTES": '{"agent-worker-number": "0",'
        '"worker-network-endpoints": "unknown:n:10.0.0.2"}',
    }
    ((code, output),) = run(ON_TPU, [environment])
    assert code == 0 and "process 0 of 1" in output, output
