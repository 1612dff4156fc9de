"""Finds the other processes of a run: who started this one, and as which of how many.

Everything is read from environment variables; on a Compute Engine TPU VM the number of
hosts is in the machine's metadata. JAX reads the same sources
(`jax.distributed.initialize` without arguments), and joins TPU hosts and the pods of a
Kubernetes Job. For the other launchers JAX is given the values found here: it takes
the number of tasks of a SLURM job, not of the step (a shell of `salloc` would wait for
tasks that nobody starts), does not find Open MPI 5, and does not read torchrun's
variables. The address of process 0 is also needed to name missing processes.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re

from prottrans_jax.distributed import metadata_server

# JAX takes this address instead of the launcher's.
COORDINATOR = "JAX_COORDINATOR_ADDRESS"
# JAX sets it when it is imported on a machine with TPU chips and libtpu.
_TPU_PLATFORM = "TPU_ML_PLATFORM"
_TPU_PORT = 8482  # As jax/_src/clusters/cloud_tpu_cluster.py.
# Ports are even, in the range that JAX uses for SLURM and Open MPI. The one above each
# is for the roll call.
_FIRST_PORT, _NUM_PORTS = 61_440, 2_047
# Step numbers from here on are special: batch scripts, shells of salloc.
_SPECIAL_STEPS = 2**32 - 16


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a launcher started this process.

    Attributes:
      launcher: Its name, for messages.
      variables: What was read, as NAME=VALUE, for messages.
      num_processes: Of the run; None: only JAX can find it.
      process_id: Of this process, from 0; None: only JAX can find it.
      coordinator: HOST:PORT of process 0; "": not found.
      joined_by_jax: Whether JAX joins these processes without arguments.
    """

    launcher: str
    variables: tuple[str, ...]
    num_processes: int | None
    process_id: int | None
    coordinator: str = ""
    joined_by_jax: bool = False

    def describe(self) -> str:
        """Where the values come from."""
        return f"{self.launcher} ({', '.join(self.variables)})"


def find(
    environ: Mapping[str, str],
    metadata: Callable[[str, Mapping[str, str]], str] = metadata_server.read_attribute,
) -> Launch | None:
    """The launcher of this process.

    The first launcher of several processes is taken, an inner one before an outer one:
    torchrun may run in a task of SLURM, and SLURM may start the daemons of mpirun.

    Args:
      environ: Environment variables of the process, after the import of JAX.
      metadata: Reads an attribute of the virtual machine; see `metadata_server`.

    Returns:
      The launch; one of a single process if there is no other; None without a launcher.

    Raises:
      ValueError: A variable is not a number, or variables contradict each other.
    """
    inner = _torch if "TORCHELASTIC_RUN_ID" in environ else _none
    readers = (inner, _open_mpi, _slurm, _torch, _jax, _tpu(metadata), _kubernetes)
    single = None
    for reader in readers:
        launch = reader(environ)
        if launch is None:
            continue
        if launch.num_processes != 1:
            return _checked(launch, environ)
        single = single or launch
    return single and _checked(single, environ)


def hint(environ: Mapping[str, str]) -> str:
    """What a process that runs alone does not use; "" if nothing is known."""
    if "SLURM_JOB_ID" not in environ or _in_slurm_step(environ):
        return ""
    tasks, nodes = environ.get("SLURM_NTASKS", "1"), environ.get("SLURM_NNODES", "1")
    if tasks in ("", "1") and nodes in ("", "1"):
        return ""
    return (
        f"This process runs alone: it was not started by srun. The SLURM job has "
        f"{nodes} node(s) and {tasks} task(s); `srun COMMAND` starts them all."
    )


def _checked(launch: Launch, environ: Mapping[str, str]) -> Launch:
    count, index = launch.num_processes, launch.process_id
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(
            f"{launch.describe()}: process {index} is not below the number of "
            f"processes, {count}."
        )
    if environ.get(COORDINATOR):
        return dataclasses.replace(
            launch,
            coordinator=environ[COORDINATOR],
            variables=(*launch.variables, f"{COORDINATOR}={environ[COORDINATOR]}"),
        )
    return launch


def _none(environ: Mapping[str, str]) -> Launch | None:
    return None


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    """mpirun of Open MPI 4 and 5; process 0 is taken to be on the host of mpirun."""
    names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]
    if not _all_set(environ, names):
        return None
    host = number = ""
    # 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, or tcp6://[fe80::1,...]:43370
    uri = re.match(
        r"(\d+)\..*?;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))",
        environ.get("OMPI_MCA_orte_hnp_uri", ""),
    )
    # 5: prterun-HOST-PID@1
    namespace = re.fullmatch(
        r"prterun-(.+)-(\d+)@\d+", environ.get("PMIX_NAMESPACE", "")
    )
    if uri:
        names.append("OMPI_MCA_orte_hnp_uri")
        # Job numbers are multiples of 4,096.
        host, number = uri[2] or uri[3], str(int(uri[1]) // 4096)
    elif namespace:
        names.append("PMIX_NAMESPACE")
        host, number = namespace[1], namespace[2]
    return Launch(
        "Open MPI",
        _with_values(environ, names),
        _number(environ, "OMPI_COMM_WORLD_SIZE"),
        _number(environ, "OMPI_COMM_WORLD_RANK"),
        _address(host, _port(environ, int(number))) if host else "",
    )


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """A task of a step, which srun starts. The shell of sbatch is in no step."""
    count = "SLURM_STEP_NUM_TASKS"
    if not environ.get(count):
        count = "SLURM_NTASKS"
    names = ["SLURM_PROCID", count, "SLURM_STEP_NODELIST", "SLURM_JOB_ID"]
    if not _all_set(environ, names) or not _in_slurm_step(environ):
        return None
    # Steps of one job may run at once on one node.
    job = _number(environ, "SLURM_JOB_ID") + int(environ.get("SLURM_STEP_ID") or 0)
    return Launch(
        "SLURM",
        _with_values(environ, names),
        _number(environ, count),
        _number(environ, "SLURM_PROCID"),
        f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{_port(environ, job)}",
    )


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
    return (
        bool(environ.get("SLURM_STEP_NODELIST"))
        and int(environ.get("SLURM_STEP_ID") or 0) < _SPECIAL_STEPS
    )


def _torch(environ: Mapping[str, str]) -> Launch | None:
    """torchrun, and others that set its variables. One alone says nothing."""
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    if not _all_set(environ, names):
        return None
    port = _number(environ, "MASTER_PORT")
    # torchrun's agent keeps its own store on MASTER_PORT.
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1
    return Launch(
        "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "torchrun's variables",
        _with_values(environ, names),
        _number(environ, "WORLD_SIZE"),
        _number(environ, "RANK"),
        _address(environ["MASTER_ADDR"], port),
    )


def _jax(environ: Mapping[str, str]) -> Launch | None:
    names = ["JAX_PROCESS_ID", "JAX_NUM_PROCESSES"]
    if not _all_set(environ, [*names, COORDINATOR]):
        return None
    return Launch(
        "JAX's variables",
        _with_values(environ, names),
        _number(environ, "JAX_NUM_PROCESSES"),
        _number(environ, "JAX_PROCESS_ID"),
    )


def _tpu(
    metadata: Callable[[str, Mapping[str, str]], str],
) -> Callable[[Mapping[str, str]], Launch | None]:
    def read(environ: Mapping[str, str]) -> Launch | None:
        """A host of a TPU slice, or of several slices."""
        if not on_tpu(environ) or environ.get("TPU_PROCESS_BOUNDS") == "1,1,1":
            return None
        for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
            if environ.get(name):  # On GKE.
                worker = "TPU_WORKER_ID"
                slices = dict(environ)
                hosts, number = environ[name], environ.get(worker, "0")
                break
        else:
            if environ.get("TPU_SKIP_MDS_QUERY"):
                return None
            name, worker = "worker-network-endpoints", "agent-worker-number"
            try:
                hosts, number = metadata(name, environ), metadata(worker, environ)
                slices = _tpu_env(metadata("tpu-env", environ)) | dict(environ)
            except metadata_server.MetadataError:
                return None
            if not hosts or not number.strip().isdigit():
                return None
        # Host names, or NAME:NUMBER:ADDRESS of older slices.
        endpoints = [host.split(":") for host in hosts.split(",")]
        first = endpoints[0][2 if len(endpoints[0]) == 3 else 0].strip()
        coordinator = slices.get("MEGASCALE_COORDINATOR_ADDRESS", "").split(":")[0]
        num_slices = int(slices.get("MEGASCALE_NUM_SLICES") or 1)
        index = int(slices.get("MEGASCALE_SLICE_ID") or 0)
        shown = [f"{name} of {len(endpoints)} host(s)", f"{worker}={number.strip()}"]
        if num_slices > 1:
            shown.append(f"MEGASCALE_SLICE_ID={index} of {num_slices}")
        port = environ.get("JAX_COORDINATOR_PORT") or _TPU_PORT
        return Launch(
            "TPU slice",
            tuple(shown),
            len(endpoints) * num_slices,
            int(number) + index * len(endpoints),
            f"{coordinator or first}:{port}",
            joined_by_jax=True,
        )

    return read


def on_tpu(environ: Mapping[str, str]) -> bool:
    """Whether JAX uses the TPU chips of this machine."""
    platforms = environ.get("JAX_PLATFORMS", "")
    return _TPU_PLATFORM in environ and (not platforms or "tpu" in platforms.split(","))


def _tpu_env(text: str) -> dict[str, str]:
    """Lines such as MEGASCALE_NUM_SLICES: '2'."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip().strip("'") for name, _, value in pairs}


def _kubernetes(environ: Mapping[str, str]) -> Launch | None:
    """A pod of an indexed Job; JAX asks the API for the number of pods."""
    names = ["KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"]
    if not _all_set(environ, names):
        return None
    return Launch(
        "Kubernetes", _with_values(environ, names), None, None, joined_by_jax=True
    )


def _all_set(environ: Mapping[str, str], names: list[str]) -> bool:
    return all(environ.get(name) for name in names)


def _with_values(environ: Mapping[str, str], names: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}={environ[name]}" for name in names)


def _number(environ: Mapping[str, str], name: str) -> int:
    if not environ[name].isdigit():
        raise ValueError(f"{name}={environ[name]} is not a whole number.")
    return int(environ[name])


def _port(environ: Mapping[str, str], number: int) -> int:
    """The same port for all processes of a job, another one for most other jobs."""
    if environ.get("JAX_COORDINATOR_PORT"):
        return _number(environ, "JAX_COORDINATOR_PORT")
    return _FIRST_PORT + 2 * (number % _NUM_PORTS)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _first_host(nodes: str) -> str:
    """First host of SLURM's list: "node[003-4,7],other" is node003."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes} is not a list of hosts.")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])
