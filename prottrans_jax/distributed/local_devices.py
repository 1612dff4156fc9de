"""GPUs of a process that SLURM, Open MPI or torchrun started.

By default JAX gives each process the GPU with the number of its local rank. A single
task on a node with four GPUs would leave three idle. A task that sees one GPU, bound by
the scheduler, would look for a GPU that it cannot see.
"""

from collections.abc import Mapping
import dataclasses
import re

# JAX reads this variable itself; it takes precedence.
OVERRIDE = "JAX_LOCAL_DEVICE_IDS"
# Each lists the GPUs that the process sees, separated by commas.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Choice:
    """GPUs of a process, and the reason.

    Attributes:
      ids: Indices of GPUs among those that the process sees, from 0. Empty: all.
      reason: One sentence for the log.
    """

    ids: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class _Task:
    launcher: str
    local_id: int  # Rank among the tasks of this node, from 0.
    on_node: int | None  # Number of tasks of this node; None: unknown.


def choose(environ: Mapping[str, str]) -> Choice | None:
    """Chooses the GPUs of this process from the environment of its launcher.

    A single task on a node, or a task with GPUs bound by the launcher, takes all GPUs
    that it sees. Tasks that all see the same GPUs divide them by local id.

    Args:
      environ: Environment variables of the process.

    Returns:
      The choice; None leaves it to JAX: without a launcher, or if JAX_LOCAL_DEVICE_IDS
      is set.

    Raises:
      ValueError: More tasks than visible GPUs share a node.
    """
    if environ.get(OVERRIDE):
        return None
    task = _task(environ)
    if task is None:
        return None
    visible = _num_visible(environ)
    tasks = f"{task.launcher}: {task.on_node or 'an unknown number of'} task(s) here"
    if visible is None:
        if task.on_node == 1:
            return Choice((), f"{tasks}: takes all GPUs.")
        return Choice(
            (task.local_id,), f"{tasks}: local id {task.local_id} takes that GPU."
        )
    all_ids = tuple(range(visible))
    tasks = f"{tasks}, {visible} GPU(s) visible"
    if task.on_node == 1 or _bound(environ, task, visible):
        return Choice(all_ids, f"{tasks}: takes all that it sees.")
    # For an unknown number of tasks, one GPU each, as JAX does.
    share = max(visible // task.on_node, 1) if task.on_node else 1
    ids = all_ids[task.local_id * share : (task.local_id + 1) * share]
    if not ids:
        raise ValueError(
            f"{tasks}, but none is left for local id {task.local_id}. Start at most "
            f"one task for each GPU, or set {OVERRIDE}."
        )
    idle = visible - share * task.on_node if task.on_node else 0
    return Choice(
        ids,
        f"{tasks}: local id {task.local_id} takes GPU {', '.join(map(str, ids))}"
        + (f"; {idle} stay idle. Start a task for each GPU." if idle else "."),
    )


def _bound(environ: Mapping[str, str], task: _Task, visible: int) -> bool:
    """Whether the launcher bound GPUs to each task, which sees only these."""
    on_node = environ.get("SLURM_GPUS_ON_NODE", "")
    return (
        visible == 1
        or bool(environ.get("SLURM_GPUS_PER_TASK"))
        or (on_node.isdigit() and int(on_node) > visible)
        or (task.on_node is not None and visible < task.on_node)
    )


def _num_visible(environ: Mapping[str, str]) -> int | None:
    for name in _VISIBLE:
        entries = [x for x in environ.get(name, "").split(",") if x.strip()]
        if entries:
            # CUDA ignores entries after a -1.
            entries = [x.strip() for x in entries]
            return entries.index("-1") if "-1" in entries else len(entries)
    return None


def _task(environ: Mapping[str, str]) -> _Task | None:
    """The task in the order of `launchers.find`: an inner launcher before an outer."""
    inner = _torch(environ) if "TORCHELASTIC_RUN_ID" in environ else None
    return inner or _open_mpi(environ) or _slurm(environ) or _torch(environ)


def _slurm(environ: Mapping[str, str]) -> _Task | None:
    # The shell of sbatch has a SLURM_LOCALID too, but is no task: it is in no step.
    if not environ.get("SLURM_LOCALID") or not environ.get("SLURM_STEP_NODELIST"):
        return None
    per_node = _expand(
        environ.get("SLURM_STEP_TASKS_PER_NODE")
        or environ.get("SLURM_TASKS_PER_NODE", "")
    )
    node = environ.get("SLURM_NODEID", "0")
    on_node = None
    if node.isdigit() and int(node) < len(per_node):
        on_node = per_node[int(node)]
    elif environ.get("SLURM_NTASKS", "").isdigit():
        nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES", "1")
        tasks = int(environ["SLURM_NTASKS"])
        on_node = -(-tasks // int(nodes)) if nodes.isdigit() and int(nodes) else None
    return _Task("SLURM", int(environ["SLURM_LOCALID"]), on_node)


def _open_mpi(environ: Mapping[str, str]) -> _Task | None:
    local_id = environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
    if not local_id:
        return None
    size = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    return _Task("Open MPI", int(local_id), int(size) if size.isdigit() else None)


def _torch(environ: Mapping[str, str]) -> _Task | None:
    if not environ.get("RANK") or not environ.get("LOCAL_RANK", "").isdigit():
        return None
    size = environ.get("LOCAL_WORLD_SIZE", "")
    return _Task(
        "torchrun", int(environ["LOCAL_RANK"]), int(size) if size.isdigit() else None
    )


def _expand(counts: str) -> list[int]:
    """SLURM's number of tasks of each node: "2(x3),1" is [2, 2, 2, 1]."""
    expanded: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        expanded += [int(match[1])] * int(match[2] or 1)
    return expanded
