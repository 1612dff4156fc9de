"""Stand-ins for SLURM's programs, whose tasks are processes of this machine."""

import os
import pathlib
import stat
import sys

# The tasks of a step, each with the variables that srun sets. One that fails ends the
# others, as --kill-on-bad-exit=1 does.
_SRUN = """#!{python}
import os, signal, subprocess, sys, time
command = [word for i, word in enumerate(sys.argv[1:])
           if not (word.startswith("--kill-on-bad-exit") and i == 0)]
nodes = int(os.environ["SLURM_NNODES"])
tasks = [
    subprocess.Popen(command, env=os.environ | {{
        "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{{nodes}})", "SLURM_NTASKS": str(nodes),
        "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0",
    }})
    for rank in range(nodes)
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
worst = 0
while any(task.poll() is None for task in tasks):
    codes = [abs(task.poll() or 0) for task in tasks]
    if max(codes) and not worst:
        worst = max(codes)
        for task in tasks:
            task.terminate()
    time.sleep(0.05)
sys.exit(worst or max(abs(task.returncode) for task in tasks))
"""
# Options before the script are sbatch's; --nodes sets the number of tasks.
_SBATCH = """#!{python}
import os, sys
arguments = sys.argv[1:]
nodes = "1"
while arguments[0].startswith("--"):
    name, _, value = arguments.pop(0).partition("=")
    nodes = value if name == "--nodes" else nodes
environment = os.environ | {{"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": nodes}}
environment |= {{"SLURM_NTASKS": nodes, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
os.execvpe("bash", ["bash", *arguments], environment)
"""
_SCONTROL = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/scontrol.calls"
"""


def programs(folder: pathlib.Path) -> dict[str, str]:
    """Makes srun, sbatch and scontrol in a folder; an environment that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("srun", _SRUN), ("sbatch", _SBATCH), ("scontrol", _SCONTROL)):
        executable(
            folder / name,
            text.format(python=sys.executable) if name != "scontrol" else text,
        )
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "JAX_C"))
    }
    return inherited | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PROTTRANS_PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }


def executable(path: pathlib.Path, text: str) -> None:
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
