"""One state on any devices; one run with any threads; one trainer a directory."""

from collections.abc import Iterator
import functools
import itertools
import pathlib
import random
import re
import subprocess
import time

import jax
import numpy as np

from cases import runs, trainer_cases
from drills import resume, trials
from prottrans_jax import partitioning
from prottrans_jax.checkpoints import checkpointing
from prottrans_jax.training import train_state

_LIMIT_S = 300.0
# Of the losses of 12 steps in float32 with other numbers of threads.
_MAX_DISTANCE = 1e-5


def meshes(work: pathlib.Path, count: int, *, seed: int = 0) -> Iterator[trials.Trial]:
    """Saves a state in one layout and restores it in another: the values are equal.

    Layouts are all partitioning schemes on 1, 2, 4 and 8 devices, with 1 or 2 devices
    for a model.
    """
    layouts = [
        (scheme, devices, model)
        for scheme in partitioning.SCHEMES
        for devices in (1, 2, 4, 8)
        for model in (1, 2)
        if model == 1 or (model <= devices and _has_model_axis(scheme))
    ]
    plan = functools.cache(functools.partial(_plan, work))
    state = train_state.initialize(plan(*layouts[0]), 0, None)
    expected = jax.tree.map(np.asarray, state)
    pairs = list(itertools.product(layouts, layouts))
    random.Random(seed).shuffle(pairs)
    for source, target in itertools.islice(itertools.cycle(pairs), count):
        folder = work / "_".join(map(str, source))
        if not folder.exists():
            shardings = jax.tree.map(lambda x: x.sharding, plan(*source).abstract)
            with checkpointing.Checkpointer(folder) as saver:
                saver.save(1, jax.device_put(expected, shardings), {})
        reader = checkpointing.Checkpointer(folder, read_only=True)
        restored = reader.restore(plan(*target).abstract).state
        same = jax.tree.map(
            lambda a, b: np.asarray(a).tobytes() == b.tobytes(), restored, expected
        )
        lost = "" if all(jax.tree.leaves(same)) else f"not equal: {same}"
        what = f"{source} restored on {target}"
        yield trials.Trial(f"saved on {source[1]} devices", what, lost)


def threads(work: pathlib.Path, count: int, *, seed: int = 0) -> Iterator[trials.Trial]:
    """The same run with as many threads, bit for bit, and with others, nearly.

    With several threads Eigen sums parts of long matrix products apart. So the number
    of threads decides the order of additions, and the last bits of the state.
    """
    del seed
    drill = resume.Drill(work, steps=12)
    drill.prepare()
    numbers = (1, 2, 8)
    for number in numbers:
        drill.finish(work / f"of{number}", env=_threads(number))
    for index in range(count):
        number = numbers[index % 3]
        run, what = work / f"run{index}", f"{drill.steps} steps"
        drill.finish(run, env=_threads(number))
        found = resume.differences(work / f"of{number}", run, drill.steps)
        kind = f"{number} and {number} threads: bits"
        yield trials.Trial(kind, what, "; ".join(found))
    for number in numbers[1:]:
        far = _distance(work / "of1", work / f"of{number}", drill.steps)
        lost = f"more than {_MAX_DISTANCE}" * (far > _MAX_DISTANCE)
        kind = f"1 and {number} threads: losses"
        yield trials.Trial(kind, f"relative difference {far:.1e}", lost)


def _distance(one: pathlib.Path, other: pathlib.Path, steps: int) -> float:
    """Largest relative difference of the losses of two runs."""
    losses = [
        np.array([log[step]["train/loss"] for step in range(1, steps + 1)])
        for log in (resume.metric_log(one), resume.metric_log(other))
    ]
    return float(np.max(np.abs(losses[0] - losses[1]) / losses[0]))


def second_trainers(
    work: pathlib.Path, count: int, *, seed: int = 0
) -> Iterator[trials.Trial]:
    """Two runs in one directory: one trains, the other is told which."""
    rng = random.Random(seed)
    drill = resume.Drill(work, steps=12)
    drill.prepare()
    drill.finish(work / "alone")
    for number in range(count):
        run = work / f"run{number}"
        pause_s = rng.uniform(0, 1.5)
        first = drill.start(run)[0]
        time.sleep(pause_s)
        second = drill.start(run)[0]
        both = (first, second)
        what = f"{1000 * pause_s:.0f} ms apart"
        yield trials.Trial("two trainers", what, _only_one(drill, work, run, both))


def _only_one(drill, work, run, both) -> str:
    try:
        codes = [process.wait(_LIMIT_S) for process in both]
    except subprocess.TimeoutExpired:
        return "still there"
    if sorted(codes) != [0, 1]:
        return f"exit statuses {codes}: {both[1].output()[-2000:]}"
    winner, refused = sorted(both, key=lambda process: process.wait())
    holder = re.search(r"is being written by process (\d+) on", refused.output())
    if not holder or int(holder[1]) != winner.pid or "Traceback" in refused.output():
        return f"the holder {winner.pid} is not named: {refused.output()[-2000:]}"
    return "; ".join(resume.differences(work / "alone", run, drill.steps))


def _plan(work, scheme: str, devices: int, model: int) -> train_state.StatePlan:
    partitioner = partitioning.Partitioner(
        scheme=scheme, num_devices=devices, model=model
    )
    arguments = trainer_cases.arguments(work, partitioner=partitioner)
    return runs.plan(**arguments)


def _has_model_axis(scheme: str) -> bool:
    return any(axis == "model" for _, axis in partitioning.SCHEMES[scheme])


def _threads(number: int) -> dict[str, str]:
    """NPROC is the size of XLA's thread pools."""
    return {"NPROC": str(number), "OMP_NUM_THREADS": str(number)}
