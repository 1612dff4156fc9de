"""Which processes a run has, by the environment variables of its launcher."""

import pytest

from prottrans_jax.distributed import launchers, metadata_server

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[003-006],other",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
ONE_TASK = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
BATCH_SHELL = {
    name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI_4 = OPEN_MPI | {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
}
OPEN_MPI_5 = OPEN_MPI | {"PMIX_NAMESPACE": "prterun-login-2-26460@1"}
TORCH = {
    "MASTER_ADDR": "gpu-0",
    "MASTER_PORT": "29500",
    "RANK": "5",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
}
TORCHRUN = TORCH | {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}  # as JAX sets it on a machine with TPU chips
GKE = TPU | {"TPU_WORKER_HOSTNAMES": "t-0.x,t-1.x,t-2.x", "TPU_WORKER_ID": "2"}
SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "s0-0:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


def without(environ, name):
    return {key: value for key, value in environ.items() if key != name}


def no_metadata(key, environ):
    raise metadata_server.MetadataError("not on Compute Engine")


def found(environ, metadata=no_metadata):
    launch = launchers.find(environ, metadata)
    return launch and (
        launch.launcher,
        launch.process_id,
        launch.num_processes,
        launch.coordinator,
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (SLURM, ("SLURM", 3, 8, "node003:62674")),
        # Another step of the job, on the same node.
        (SLURM | {"SLURM_STEP_ID": "1"}, ("SLURM", 3, 8, "node003:62676")),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, ("SLURM", 3, 8, "node003:99")),
        (
            SLURM | {"JAX_COORDINATOR_ADDRESS": "ib0:7000"},
            ("SLURM", 3, 8, "ib0:7000"),
        ),
        # The job has 8 tasks, this step 4.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, ("SLURM", 3, 4, "node003:62674")),
        # The job's number of tasks where the step's is not set; the first step.
        (without(SLURM, "SLURM_STEP_NUM_TASKS"), ("SLURM", 3, 8, "node003:62674")),
        (without(SLURM, "SLURM_STEP_ID"), ("SLURM", 3, 8, "node003:62674")),
        (SLURM | {"SLURM_STEP_NODELIST": "a,b"}, ("SLURM", 3, 8, "a:62674")),
        (
            SLURM | {"SLURM_STEP_NODELIST": "r[7,9]n[1-2]"},
            ("SLURM", 3, 8, "r7n1:62674"),
        ),
        (OPEN_MPI_4, ("Open MPI", 1, 2, "10.96.0.1:64172")),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::1,::2]:43370"},
            ("Open MPI", 1, 2, "[fe80::1]:61442"),
        ),
        (OPEN_MPI_5, ("Open MPI", 1, 2, "login-2:65232")),
        (OPEN_MPI, ("Open MPI", 1, 2, "")),
        (TORCH, ("torchrun's variables", 5, 16, "gpu-0:29500")),
        (TORCHRUN, ("torchrun", 5, 16, "gpu-0:29501")),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "3",
                "JAX_PROCESS_ID": "2",
            },
            ("JAX's variables", 2, 3, "a:1"),
        ),
        (GKE, ("TPU slice", 2, 3, "t-0.x:8482")),
        (GKE | {"JAX_PLATFORMS": "tpu,cpu"}, ("TPU slice", 2, 3, "t-0.x:8482")),
        (GKE | {"JAX_COORDINATOR_PORT": "99"}, ("TPU slice", 2, 3, "t-0.x:99")),
        (
            GKE | {"TPU_PROCESS_ADDRESSES": "u-0:8476,u-1:8476,u-2:8476"},
            ("TPU slice", 2, 3, "u-0:8482"),
        ),
        (GKE | SLICES, ("TPU slice", 5, 6, "s0-0:8482")),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            ("Kubernetes", None, None, ""),
        ),
        # The inner launcher of two.
        (SLURM | OPEN_MPI_5, ("Open MPI", 1, 2, "login-2:65232")),
        (SLURM | TORCHRUN, ("torchrun", 5, 16, "gpu-0:29501")),
        # Variables of a batch script that srun's tasks inherit.
        (SLURM | TORCH, ("SLURM", 3, 8, "node003:62674")),
        (SLURM | ONE_TASK | TORCH, ("torchrun's variables", 5, 16, "gpu-0:29500")),
    ],
)
def test_a_process_that_was_started_with_others_finds_them(environ, expected):
    assert found(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BATCH_SHELL,  # sbatch without srun, and salloc
        BATCH_SHELL | {"SLURM_JOB_NODELIST": "a,b"},
        # A shell of salloc in a step of its own.
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        # Hosts of a slice, but no TPU here: a CPU pod beside it.
        without(GKE, "TPU_ML_PLATFORM"),
        GKE | {"JAX_PLATFORMS": "cpu"},
        # Several processes that share one host's chips.
        GKE | {"TPU_PROCESS_BOUNDS": "1,1,1"},
        TPU,
    ],
)
def test_what_does_not_name_other_processes_is_no_launcher(environ):
    assert found(environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        SLURM | ONE_TASK,
        OPEN_MPI_5 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        TORCH | {"WORLD_SIZE": "1", "RANK": "0"},
        GKE | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    ],
)
def test_a_launch_of_one_process_is_one_process(environ):
    assert launchers.find(environ, no_metadata).num_processes == 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            {"worker-network-endpoints": "t-0,t-1", "agent-worker-number": "1"},
            ("TPU slice", 1, 2, "t-0:8482"),
        ),
        # The format of older slices.
        (
            {
                "worker-network-endpoints": "unknown:n:10.0.0.2,unknown:n:10.0.0.3",
                "agent-worker-number": "0",
            },
            ("TPU slice", 0, 2, "10.0.0.2:8482"),
        ),
        (
            {"worker-network-endpoints": "unknown:n:10.0.0.2"}
            | {"agent-worker-number": "0"},
            ("TPU slice", 0, 1, "10.0.0.2:8482"),
        ),
        (
            {
                "worker-network-endpoints": "t-0,t-1",
                "agent-worker-number": "1",
                "tpu-env": "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '3'\n"
                "MEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: 's0'\n",
            },
            ("TPU slice", 5, 6, "s0:8482"),
        ),
        ({}, None),
        ({"worker-network-endpoints": "t-0,t-1", "agent-worker-number": ""}, None),
        ({"worker-network-endpoints": "", "agent-worker-number": "1"}, None),
    ],
)
def test_a_tpu_vm_of_compute_engine_is_described_by_its_metadata(attributes, expected):
    assert found(TPU, lambda key, environ: attributes.get(key, "")) == expected


def test_metadata_is_not_asked_for_where_the_variables_suffice():
    def unexpected(key, environ):
        raise AssertionError(key)

    assert found(GKE, unexpected)
    assert found(SLURM, unexpected)
    assert found(TPU | {"TPU_SKIP_MDS_QUERY": "1"}, unexpected) is None
    assert found({}, unexpected) is None


def test_variables_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"process 8 is not below .* 8"):
        launchers.find(SLURM | {"SLURM_PROCID": "8"})
    with pytest.raises(ValueError, match="WORLD_SIZE=two is not a whole number"):
        launchers.find(TORCH | {"WORLD_SIZE": "two"})


def test_the_variables_that_were_read_are_named():
    assert launchers.find(SLURM).describe() == (
        "SLURM (SLURM_PROCID=3, SLURM_STEP_NUM_TASKS=8, "
        "SLURM_STEP_NODELIST=node[003-006],other, SLURM_JOB_ID=4711)"
    )


def test_a_job_with_more_tasks_than_this_process_uses_is_told_of_srun():
    assert "8 task(s); `srun COMMAND`" in launchers.hint(BATCH_SHELL)
    shell = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}
    assert "srun" in launchers.hint(shell)
    nodes = {"SLURM_NTASKS": "1", "SLURM_NNODES": "2"}
    assert "has 2 node(s) and 1 task(s);" in launchers.hint(BATCH_SHELL | nodes)
    assert launchers.hint(SLURM) == ""
    assert not launchers.hint(SLURM | ONE_TASK)
    assert not launchers.hint(BATCH_SHELL | {"SLURM_NTASKS": "1"})
    assert not launchers.hint({})
