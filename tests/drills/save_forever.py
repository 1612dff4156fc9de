"""Saves step after step until it is killed: `save_forever.py DIRECTORY`."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import test_checkpoints as cases

from prottrans_jax import checkpoints

checkpointer = checkpoints.Checkpointer(sys.argv[1], keep=2)
restored = checkpointer.restore(cases.abstract(cases.make_state(0)))
step = 0 if restored is None else restored.step + 1
while True:
    checkpointer.wait()
    print("saving", step, flush=True)
    checkpointer.save(step, cases.make_state(step), {})
    step += 1
