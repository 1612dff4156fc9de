"""Preparation and training in a bucket, killed at random moments, against a local run.

FASTA, records, checkpoints and logs are in the bucket of an emulator. Every start of
training has an empty cache of records, as on a new machine. `prepare` is killed once,
then training again and again; each resumes from what is in the bucket.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import random
import re
import shutil
import time

from etils import epath

from cases import stores
from drills import processes, resume, trials
from prottrans_jax.checkpoints import manifests
from prottrans_jax.files import folders, paths, writing

_PHASES = ("start", "compile", "step", "save", "evaluation")
# Kills of a run of 40 steps, the last one at its end.
_KILLS_OF_A_RUN = 10
_POLL_S = 0.02
_LIMIT_S = 300.0
_STEP = re.compile(r" step (\d+)/\d+  ")


def killed(
    work: pathlib.Path,
    count: int,
    *,
    store: str = "gs",
    topology: str = "1",
    seed: int = 0,
) -> Iterator[trials.Trial]:
    """SIGKILL to `prepare`, then to training.

    Args:
      work: scratch directory.
      count: number of kills.
      store: "gs" or "s3".
      topology: key of `resume.TOPOLOGIES`.
      seed: of the moments.
    """
    rng = random.Random(seed)
    bucket = paths.place(stores.fresh(store, work), "bucket")
    local = resume.Drill(work, topology, records=work / "records")
    remote = dataclasses.replace(
        local, records=bucket / "records", environment=stores.environment(store)
    )
    local.prepare()
    names = resume.proteins("P", 8 * local.steps, rng)
    fasta = "".join(f">{name}\n{sequence}\n" for name, sequence in names)
    for root in (work, bucket):
        (root / "x.fasta").write_text(fasta)
    lasts_s = _prepare(local, work)
    local.finish(work / "unbroken", keep=10**6)
    yield _killed_preparation(remote, bucket, work, rng.uniform(0.0, lasts_s))
    done = 1
    while done < count:
        kills = min(_KILLS_OF_A_RUN, count - done)
        broken = bucket / f"broken{done}"
        found = list(_killed_run(remote, work / "unbroken", broken, kills, rng))
        different = _with_new_cache(remote).goes_on(work / "unbroken", broken)
        if not different:
            writing.remove(broken)
        for trial in found:
            done += 1
            lost = trial.lost or different
            yield dataclasses.replace(trial, lost=lost)


def _start_preparation(drill: resume.Drill, root: paths.Place) -> processes.Process:
    number = len(list(drill.work.glob("prepare.*.log")))
    flags = [
        f"--input={root / 'x.fasta'}",
        f"--output={drill.records}",
        *("--name=drill", "--num_shards=3", "--validation_fraction=0.2"),
    ]
    return processes.start_module(
        "prottrans_jax.prepare",
        flags,
        drill.work / f"prepare.{number}.log",
        env=drill.environment,
    )


def _prepare(drill: resume.Drill, root: paths.Place) -> float:
    """Prepares the records; returns the seconds that it takes."""
    begin = time.monotonic()
    process = _start_preparation(drill, root)
    if process.wait(_LIMIT_S):
        raise RuntimeError(f"prepare: {process.output()[-3000:]}")
    return time.monotonic() - begin


def _killed_preparation(
    drill: resume.Drill, bucket: paths.Place, work: pathlib.Path, pause_s: float
) -> trials.Trial:
    process = _start_preparation(drill, bucket)
    time.sleep(pause_s)
    process.kill()
    process.wait()
    lost = ""
    if process.poll():  # It was not done yet.
        try:
            _prepare(drill, bucket)
        except RuntimeError as error:
            lost = str(error)
    expected = _records(work / "records")
    if not lost and _records(bucket / "records") != expected:
        lost = "the records differ from those of a local folder"
    return trials.Trial("prepare", f"{1000 * pause_s:.0f} ms after the start", lost)


def _records(folder: paths.Place) -> dict[str, bytes]:
    """Content of all files but the manifest, which names the input."""
    names = [name for name in folders.files_below(folder) if name != "manifest.json"]
    return {name: (folder / name).read_bytes() for name in names}


def _with_new_cache(drill: resume.Drill) -> resume.Drill:
    cache = drill.work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    variables = {**drill.environment, "PROTTRANS_DATA_CACHE": str(cache)}
    return dataclasses.replace(drill, environment=variables)


def _killed_run(drill, unbroken, broken, kills, rng) -> Iterator[trials.Trial]:
    """Starts a run `kills` times and kills it at random moments."""
    lasts_s = dict.fromkeys(("start", "compile"), 2.0)
    phases = [rng.choice(_PHASES) for _ in range(kills - 1)] + ["end"]
    targets = sorted(rng.randrange(1, drill.steps) for _ in phases)
    logged = 0
    for phase, target in zip(phases, targets, strict=True):
        step = max(target, logged + 1)
        if phase == "evaluation":
            step = -(-step // drill.eval_period) * drill.eval_period
        if phase == "end" or step >= drill.steps:
            phase, step = "end", drill.steps
        started = _with_new_cache(drill).start(broken)
        when = _wait_for(broken, started, phase, step, lasts_s, rng)
        ended = [process for process in started if process.poll() is not None]
        for process in rng.sample(started, len(started)):
            process.kill()
            process.wait()
        if ended and any(process.poll() for process in ended):
            yield trials.Trial(phase, when, f"ended by itself: {_said(ended)}")
            continue
        logged = max(logged, _last_step(started))
        lost = resume.inspect(drill, unbroken, broken, logged, "SIGKILL")
        yield trials.Trial(f"SIGKILL in {phase}", f"{when}, step {logged} logged", lost)


def _wait_for(broken, started, phase, step, lasts_s, rng: random.Random) -> str:
    """Waits for a random moment of a phase; returns it in words.

    `lasts_s` holds how long phases last, in seconds, and is updated.
    """
    begin = time.monotonic()

    def wait(ready) -> float:
        while not ready() and all(process.poll() is None for process in started):
            if time.monotonic() - begin > _LIMIT_S:
                raise TimeoutError(f"no sign of {phase} {step}: {_said(started)}")
            time.sleep(_POLL_S)
        return time.monotonic() - begin

    def pause(longest_s: float) -> str:
        pause_s = rng.uniform(0.0, longest_s)
        end = time.monotonic() + pause_s
        wait(lambda: time.monotonic() >= end)
        return f"{1000 * pause_s:.0f} ms"

    if phase == "start":
        return f"{pause(lasts_s['start'])} after the start"
    lasts_s["start"] = wait(lambda: resume.COMPILES in started[0].output())
    if phase == "compile":
        return f"{pause(lasts_s['compile'])} into the compilation"
    lasts_s["compile"] = wait(lambda: _last_step(started) > 0) - lasts_s["start"]
    wait(lambda: _last_step(started) >= step)
    if phase != "save":
        return f"{pause(1.0 if phase == 'end' else 0.3)} after step {step}"
    checkpoints = epath.Path(broken / "checkpoints")
    wait(lambda: _is_saving(checkpoints))
    return f"{pause(0.3)} into the save after step {step}"


def _is_saving(checkpoints: epath.Path) -> bool:
    steps = manifests.step_numbers(checkpoints)
    return any(manifests.is_unfinished(checkpoints / str(step)) for step in steps)


def _last_step(started) -> int:
    """Last step that process 0 has reported; 0 before the first."""
    steps = _STEP.findall(started[0].output())
    return int(steps[-1]) if steps else 0


def _said(started) -> str:
    return "\n".join(process.output()[-2000:] for process in started)
