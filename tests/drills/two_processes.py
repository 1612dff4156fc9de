"""One process of a run of two: `two_processes.py PROCESS PORT DIRECTORY`.

Runs the steps that `test_two_processes` checks, and prints the results as JSON.
"""

import json
import os
import pathlib
import signal
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from cases import checkpoint_cases
from prottrans_jax.checkpoints import checkpointing
from prottrans_jax.distributed import barriers, coordination, start, stopping
from prottrans_jax.files import paths

process, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
start.initialize(f"localhost:{port}", 2, process, timeout_s=60)
seen = {"devices": jax.device_count(), "local_devices": jax.local_device_count()}


def attempt(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


barriers.gather("all here", None, 60)
barriers.gather("all here", None, 60)
seen["gathered"] = barriers.gather("values", {"process": process}, 60)
asked = []
seen["told"] = barriers.from_process_zero(
    "ask", lambda: asked.append(process) or {"answer": 42}, 60
)
seen["asked"] = asked
seen["failure"] = attempt(
    lambda: barriers.from_process_zero("fail", lambda: json.loads("{"), 60)
)

# A state sharded over both processes, saved in steps, the newest one damaged.
mesh = checkpoint_cases.make_mesh(2, 2)


def make_state(step):
    host = checkpoint_cases.make_state(step)
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: np.asarray(leaf)[index]
        ),
        host,
        checkpoint_cases.shardings_of(host, mesh),
    )


def local_bytes(tree):
    return [
        [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(tree)
    ]


checkpointer = checkpointing.Checkpointer(directory, keep=2)
for step in (1, 2, 3):
    checkpointer.save(step, make_state(step), {"next_row": step})
checkpointer.close()
if process == 0:
    next(paths.place(f"{directory}/3/d", "-").iterdir()).write_bytes(b"")
barriers.gather("damaged", None, 60)
checkpointer = checkpointing.Checkpointer(directory, keep=2)
restored = checkpointer.restore(checkpoint_cases.abstract(make_state(0)))
seen["restored"] = [restored.step, restored.metadata]
seen["equal"] = local_bytes(restored.state) == local_bytes(make_state(restored.step))
checkpointer.save(3, make_state(3), {})
checkpointer.close()

# Process 1 is slower and gets the signal: it has to catch up with the step agreed on.
with stopping.StopSignal() as stop:
    for step in range(100_000):
        time.sleep(0.001 + 0.002 * process)
        if step == 20 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if stop.should_stop(step):
            break
seen["stopped_at"], seen["exit_code"] = step, stop.exit_code

if process == 0:
    seen["missing"] = attempt(lambda: barriers.gather("lonely", None, 1))
    seen["silent"] = None
else:
    time.sleep(3)
    coordination._calls["gather/lonely"] = 1
barriers.gather("end", None, 60)
print("SEEN", json.dumps(seen), flush=True)
