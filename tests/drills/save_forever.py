"""Saves step after step until it is killed: `save_forever.py DIRECTORY`."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from cases import checkpoint_cases
from prottrans_jax.checkpoints import checkpointing

checkpointer = checkpointing.Checkpointer(sys.argv[1], keep=2)
restored = checkpointer.restore(
    checkpoint_cases.abstract(checkpoint_cases.make_state(0))
)
step = 0 if restored is None else restored.step + 1
while True:
    checkpointer.wait()
    print("saving", step, flush=True)
    checkpointer.save(step, checkpoint_cases.make_state(step), {})
    step += 1
