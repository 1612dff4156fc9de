"""Commands that are stopped, or run on a full disk, and are then run again."""

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

from cases import embed_cases
from drills import processes, resume, trials

# They hold dates; that they are there is compared, not what they say.
_WITH_DATES = ("provenance.json", "out.h5.json")
# Exit statuses on a full disk; 1 for the others.
_FULL = {"embed": 4}
_NO_SPACE = re.compile("no space left|file too large", re.IGNORECASE)
_LIMIT_S = 120.0
_STOP_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with one output.

    Attributes:
      module: run with `python -m`.
      flags: of the command, before that of the output.
      output: flag and value of the output; "{}" is its path.
      name: of the output.
    """

    module: str
    flags: tuple[str, ...]
    output: str
    name: str

    def start(self, folder: pathlib.Path, log: pathlib.Path, limit_bytes: int | None):
        """Starts the command with its output in a folder.

        Args:
          folder: of the output.
          log: file of what it says.
          limit_bytes: largest file that it can write; None: no limit.
        """
        flags = [*self.flags, *self.output.format(folder / self.name).split()]
        return processes.start_module(self.module, flags, log, limit_bytes=limit_bytes)

    def finish(self, folder: pathlib.Path, log: pathlib.Path) -> str:
        """Runs the command; returns what went wrong."""
        process = self.start(folder, log, None)
        code = process.wait(_LIMIT_S)
        return f"exit status {code}: {process.output()[-2000:]}" if code else ""


def make(work: pathlib.Path) -> dict[str, Command]:
    """The commands, with inputs in `work` that keep each busy for a second or more."""
    model = embed_cases.make_model(
        work / "model", seed=0, d_model=32, d_ff=64, num_heads=1, head_dim=32
    )
    proteins = embed_cases.random_proteins(2000, seed=1)
    fasta = str(embed_cases.write_fasta(work / "x.fasta", proteins))
    proteins = embed_cases.random_proteins(20_000, seed=2)
    larger = str(embed_cases.write_fasta(work / "larger.fasta", proteins))
    trained = work / "trained"
    trained.mkdir()
    drill = resume.Drill(trained, steps=4)
    drill.prepare()
    drill.finish(trained / "run")
    return {
        "embed": Command(
            "prottrans_jax.cli",
            ("embed", "-i", fasta, "-m", str(model), "--commit-seconds", "0"),
            "-o {}",
            "out.h5",
        ),
        "prepare": Command(
            "prottrans_jax.prepare",
            ("--input", larger, "--validation_fraction", "0.1"),
            "--output {}",
            "records",
        ),
        "convert": Command(
            "prottrans_jax.convert",
            (f"--input=hf:{model}", "--to=t5x"),
            "--output {}",
            "converted",
        ),
        "export": Command(
            "prottrans_jax.export",
            (f"--checkpoint={trained / 'run'}", "--part=all"),
            "--output {}",
            "exported",
        ),
    }


def stopped(work: pathlib.Path, count: int, *, seed: int = 0) -> Iterator[trials.Trial]:
    """SIGTERM or SIGINT at a random moment of each command, which is then repeated."""
    rng = random.Random(seed)
    cases = _unbroken(work)
    kinds = itertools.product(("SIGTERM", "SIGINT"), cases)
    for number, (name, which) in enumerate(
        itertools.islice(itertools.cycle(kinds), count)
    ):
        command, whole, lasts_s = cases[which]
        folder = work / f"stopped{number}"
        folder.mkdir()
        process = command.start(folder, work / f"stopped{number}.log", None)
        pause_s = rng.uniform(0, 1.1 * lasts_s)
        time.sleep(pause_s)
        process.send_signal(signal.Signals[name])
        what = f"after {1000 * pause_s:.0f} of {1000 * lasts_s:.0f} ms"
        lost = _stops(process, signal.Signals[name])
        done = (folder / command.name).exists()
        if not lost and process.poll() and done and _differences(whole, folder):
            lost = "a partial output has its name"
        lost = lost or _repeated(command, folder, whole, done)
        yield trials.Trial(f"{name}, {which}", what, lost)
        shutil.rmtree(folder)


def full_disks(
    work: pathlib.Path, count: int, *, seed: int = 0
) -> Iterator[trials.Trial]:
    """Commands and training that fill a small disk, then go on with more room.

    The disk is a tmpfs, where this process may mount one; else no file may grow beyond
    a limit.
    """
    rng = random.Random(seed)
    cases = _unbroken(work)
    training = resume.Drill(work, steps=30)
    training.prepare()
    whole = work / "unbroken"
    training.finish(whole, keep=10**6)
    save_bytes = _size(whole / "checkpoints" / "30")
    names = ["saves", "logs", *cases]
    for number in range(count):
        which = names[number % len(names)]
        place, log = work / f"full{number}", work / f"full{number}.log"
        if which == "saves":  # Two are kept while a third is written.
            num_bytes = save_bytes * rng.uniform(0.2, 3.5)
        elif which == "logs":
            num_bytes = 4096 * rng.randrange(6)
        else:
            num_bytes = _size(cases[which][1]) * rng.uniform(0.05, 1.5)
        with _small_disk(place, int(num_bytes) + 4096) as disk:
            if which == "saves":
                (process,) = training.start(place / "run", limit_bytes=disk.limit_bytes)
                lost = _ends_on_full_disk(process, 1)
                disk.enlarge()
                lost = lost or training.goes_on(whole, place / "run")
            elif which == "logs":
                lost, process = _logs_on_full_disk(training, whole, disk, log)
            else:
                command, expected, _ = cases[which]
                process = command.start(place, log, disk.limit_bytes)
                lost = _ends_on_full_disk(process, _FULL.get(which, 1))
                disk.enlarge()
                done = not process.poll()
                lost = lost or _repeated(command, place, expected, done)
            code = process.poll()
            kind = f"{which}: {'completed' if code == 0 else 'one line, resumed'}"
            yield trials.Trial(kind, f"{disk.what}, exit status {code}", lost)


def _ends_on_full_disk(process: processes.Process, status: int) -> str:
    """What is wrong with the end of a process, which may also have had enough room."""
    try:
        code = process.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"still there after {_LIMIT_S:.0f} s"
    said = process.output()
    if code not in (0, status) or "Traceback" in said:
        return f"exit status {code}: {said[-3000:]}"
    if code and not _NO_SPACE.search(said.splitlines()[-1]):
        return f"last line: {said.splitlines()[-1]}"
    return ""


def _logs_on_full_disk(
    training: resume.Drill, whole: pathlib.Path, disk: "_Disk", log: pathlib.Path
) -> tuple[str, processes.Process]:
    """A run whose checkpoints have room and whose log gets it after an error."""
    run = disk.place / "run"
    checkpoints = log.with_suffix(".checkpoints")
    checkpoints.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(checkpoints)
    (process,) = training.start(run, limit_bytes=disk.limit_bytes)
    while process.poll() is None and not _NO_SPACE.search(process.output()):
        time.sleep(0.005)
    disk.enlarge()
    code = process.wait(_LIMIT_S)
    if code or "Traceback" in process.output():
        return f"exit status {code}: {process.output()[-3000:]}", process
    if "is not complete" in process.output():  # The run was done too soon.
        return "; ".join(resume.compare_steps(whole, run, training.steps)), process
    return "; ".join(resume.differences(whole, run, training.steps)), process


def _size(place: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


@dataclasses.dataclass(frozen=True)
class _Disk:
    place: pathlib.Path
    num_bytes: int
    is_mounted: bool

    @property
    def what(self) -> str:
        kind = "tmpfs" if self.is_mounted else "RLIMIT_FSIZE"
        return f"{kind} of {self.num_bytes:,} bytes"

    @property
    def limit_bytes(self) -> int | None:
        return None if self.is_mounted else self.num_bytes

    def enlarge(self) -> None:
        if self.is_mounted:
            _mount("remount,size=1g", self.place)


@contextlib.contextmanager
def _small_disk(place: pathlib.Path, num_bytes: int) -> Iterator[_Disk]:
    place.mkdir()
    is_mounted = os.geteuid() == 0 and _mount(f"size={num_bytes}", place)
    try:
        yield _Disk(place, num_bytes, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", place], check=True)
        shutil.rmtree(place, ignore_errors=True)


def _mount(options: str, place: pathlib.Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    return subprocess.run(words, capture_output=True).returncode == 0


def _unbroken(work: pathlib.Path) -> dict[str, tuple[Command, pathlib.Path, float]]:
    """Name to command, its output without a loss, and its seconds."""
    found = {}
    for name, command in make(work).items():
        folder = work / f"whole_{name}"
        folder.mkdir()
        begin = time.monotonic()
        if problem := command.finish(folder, work / f"whole_{name}.log"):
            raise RuntimeError(f"{name}: {problem}")
        found[name] = (command, folder, time.monotonic() - begin)
    return found


def _stops(process: processes.Process, number: signal.Signals) -> str:
    try:
        code = process.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"still there after {_STOP_LIMIT_S:.0f} s"
    said = process.output()
    if "Traceback" in said or code not in (0, 128 + number, -number):
        return f"exit status {code}: {said[-3000:]}"
    if code == 128 + number and f"stopped by {number.name}" not in said:
        return f"no line says so: {said[-1000:]}"
    return ""


def _repeated(
    command: Command, folder: pathlib.Path, whole: pathlib.Path, done: bool
) -> str:
    """What differs after the same command again, unless it is done."""
    if not done:
        if problem := command.finish(folder, folder.with_suffix(".again.log")):
            return f"again: {problem}"
    return _differences(whole, folder)


def _differences(whole: pathlib.Path, folder: pathlib.Path) -> str:
    expected, found = _files(whole), _files(folder)
    names = sorted(
        name
        for name in expected.keys() | found.keys()
        if expected.get(name) != found.get(name)
    )
    return f"differs: {', '.join(names)}" if names else ""


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): b""
        if file.name in _WITH_DATES
        else file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
