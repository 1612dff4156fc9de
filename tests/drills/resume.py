"""Training that is killed or stopped at random moments, against an unbroken run.

Runs `prottrans_jax.train` as a user would: dropout, shuffling and packing on,
Adafactor, a second epoch; `family` takes that family's sample leaf. After every kill,
the checkpoint that the next start will use is compared with the unbroken run's of the
same step; at the end, every step of the metric log and the final parameters, optimizer
and loader state. All bit for bit.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import json
import pathlib
import random
import shutil
import signal
import subprocess
import time
from typing import Any

from etils import epath
import numpy as np

from cases import checkpoint_cases, process_cases
from drills import processes, trials, virtual_hosts
from prottrans_jax import differences as differing
from prottrans_jax.checkpoints import manifests
from prottrans_jax.data.records import record_writer
from prottrans_jax.files import paths

LEAF = """
from __gin__ import dynamic_registration
from prottrans_jax.training import trainer
from prottrans_jax.models import t5

include "runs/pretrain.gin"
include "models/prot_t5_small.gin"

MIXTURE_OR_TASK_NAME = "fasta_iid_denoise"
TASK_FEATURE_LENGTHS = {"inputs": 48, "targets": 48}
BATCH_SIZE = 8
EVAL_BATCHES = 2
LOG_PERIOD = 1
DTYPE = "float32"
REMAT_POLICY = "none"
DROPOUT_RATE = 0.1
t5.T5Config.num_layers = 2
t5.T5Config.num_decoder_layers = 1
t5.T5Config.d_model = 160
t5.T5Config.d_ff = 192
t5.T5Config.num_heads = 4
t5.T5Config.head_dim = 6
"""
# The sample leaf of a family, on the drill's records, with dropout.
FAMILY_LEAF = """
from __gin__ import dynamic_registration

include "sample_{family}.gin"

MIXTURE_OR_TASK_NAME = "fasta_{objective}"
TASK_FEATURE_LENGTHS = {{"inputs": 48}}
BATCH_SIZE = 8
EVAL_BATCHES = 2
LOG_PERIOD = 1
WARMUP_STEPS = 4
DROPOUT_RATE = 0.1
"""
FAMILIES = {
    "bert": "masked_lm_pairs",
    "albert": "ngram_masked_lm",
    "electra": "masked_lm_kept",
    "xlnet": "permutation_lm",
    "transformer_xl": "causal_lm",
}
# Processes and devices of each.
TOPOLOGIES = {
    "1": (1, 1),
    "4": (1, 4),
    "2x1": (2, 1),
    "2x2": (2, 2),
    "2x4": (2, 4),
    "4x2": (4, 2),
}
STOP_LIMIT_S = 30.0
_LIMIT_S = 300.0
_PHASES = ("import", "start", "compile", "step", "save", "evaluation")
# Longest and shortest time of a signal; the interpreter itself starts before.
_IMPORTS_S = (5.0, 0.3)
# The trainer logs this just before it compiles.
COMPILES = "batch 8 rows in"
# Starts that are ended in a run, the last one at its end.
_ENDS_OF_A_RUN = 8


@dataclasses.dataclass(frozen=True)
class Drill:
    """A run and how it is started.

    Attributes:
      work: scratch directory.
      topology: key of `TOPOLOGIES`.
      steps: of the whole run.
      checkpoint_period: in steps.
      eval_period: in steps.
      family: key of `FAMILIES`; T5 otherwise.
      records: prepared folder; None: `write_records` makes one in `work`.
      environment: further variables of the processes.
    """

    work: pathlib.Path
    topology: str = "1"
    steps: int = 40
    checkpoint_period: int = 2
    eval_period: int = 6
    family: str | None = None
    records: paths.Place | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def prepare(self) -> None:
        """Writes the leaf and the records of made-up proteins."""
        leaf = LEAF
        if self.family is not None:
            leaf = FAMILY_LEAF.format(
                family=self.family, objective=FAMILIES[self.family]
            )
        (self.work / "leaf.gin").write_text(leaf)
        if self.records is None:
            write_records(self.work / "records", self.steps)

    def flags(
        self,
        model_dir: paths.Place,
        keep: int = 2,
        checkpoint_period: int | None = None,
        settings: tuple[str, ...] = (),
    ) -> list[str]:
        """Flags of `prottrans_jax.train`; the arguments are those of `start`."""
        bindings = [
            f"TRAIN_STEPS = {self.steps}",
            f"CHECKPOINT_PERIOD = {checkpoint_period or self.checkpoint_period}",
            f"EVAL_PERIOD = {self.eval_period}",
            f"run_settings.Checkpoints.keep = {keep}",
            *settings,
        ]
        return [
            f"--gin_file={self.work / 'leaf.gin'}",
            f"--model_dir={model_dir}",
            f"--data_dir={self.records or self.work / 'records'}",
            "--notensorboard",
            *(f"--gin_bindings={binding}" for binding in bindings),
        ]

    def start(
        self,
        model_dir: paths.Place,
        keep: int = 2,
        checkpoint_period: int | None = None,
        env: Mapping[str, str] | None = None,
        settings: tuple[str, ...] = (),
        hosts: virtual_hosts.VirtualHosts | None = None,
        limit_bytes: int | None = None,
        forked: bool = True,
    ) -> list[processes.Process | processes.FreshProcess]:
        """Starts all processes of the run, or of its next part.

        Args:
          model_dir: of the run.
          keep: checkpoints to keep.
          checkpoint_period: in steps; None: that of the drill.
          env: changes of the environment.
          settings: further gin bindings.
          hosts: where the processes run; None: this machine.
          limit_bytes: largest file that a process can write; None: no limit.
          forked: False for a run of one process that does its own imports.
        """
        num_processes, num_devices = TOPOLOGIES[self.topology]
        flags = self.flags(model_dir, keep, checkpoint_period, settings)
        if num_processes > 1:
            zero = "localhost" if hosts is None else hosts.address(0)
            address = f"{zero}:{process_cases.free_port()}"
            flags += [
                f"--coordinator_address={address}",
                f"--num_processes={num_processes}",
            ]
        started = []
        number = len(list(self.work.glob(f"{model_dir.name}.*.0.log")))
        xla_flags = (
            "--xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={num_devices}"
        )
        environment = {"XLA_FLAGS": xla_flags, **self.environment, **(env or {})}
        for index in range(num_processes):
            log = self.work / f"{model_dir.name}.{number}.{index}.log"
            module = "prottrans_jax.train"
            if not forked:
                return [processes.FreshProcess(module, flags, log, environment)]
            own = [f"--process_id={index}"] if num_processes > 1 else []
            started.append(
                processes.start_module(
                    module,
                    [*flags, *own],
                    log,
                    env=environment,
                    host=None if hosts is None else hosts.hosts[index],
                    limit_bytes=limit_bytes,
                )
            )
        return started

    def finish(self, model_dir: paths.Place, **options: Any) -> None:
        """Runs the rest of a run; `options` are those of `start`."""
        started = self.start(model_dir, **options)
        for process in started:
            try:
                code: int | str = process.wait(_LIMIT_S)
            except subprocess.TimeoutExpired:
                code = "none in time"
            if code:
                for each in started:
                    each.kill()
                raise RuntimeError(
                    f"{model_dir}: exit status {code}\n{process.output()[-4000:]}"
                )

    def goes_on(self, unbroken: paths.Place, broken: paths.Place) -> str:
        """Runs the rest of a broken run; returns what then differs."""
        try:
            self.finish(broken)
            return "; ".join(differences(unbroken, broken, self.steps))
        except (RuntimeError, ValueError) as error:
            return str(error)


def write_records(folder: pathlib.Path, steps: int) -> None:
    """Records for runs of `steps` steps of 8 rows of 48, which enter a second epoch."""
    rng = random.Random(0)
    with record_writer.Writer(folder, name="drill") as writer:
        writer.add_shard("train", proteins("T", 6 * steps, rng))
        writer.add_shard("validation", proteins("V", 60, rng))


def proteins(name: str, count: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Ids, which begin with `name`, and sequences of made-up proteins."""
    for number in range(count):
        length = rng.randrange(5, 90)
        yield (
            f"{name}{number}",
            "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=length)),
        )


def ended_at_random(
    work: pathlib.Path,
    count: int,
    *,
    how: str = "kill",
    topology: str = "1",
    family: str | None = None,
    seed: int = 0,
) -> Iterator[trials.Trial]:
    """Runs that are ended `count` times in all, each resumed.

    Args:
      work: scratch directory.
      count: number of trials.
      how: "kill", or "signal" for SIGTERM and SIGINT in turn.
      topology: key of `TOPOLOGIES`.
      family: key of `FAMILIES`; None: T5.
      seed: of the moments.
    """
    rng = random.Random(seed)
    drill = Drill(work, topology, family=family)
    drill.prepare()
    unbroken = work / "unbroken"
    # A signal saves the step it comes at, so all are needed to compare with.
    period = 1 if how == "signal" else None
    drill.finish(unbroken, keep=10**6, checkpoint_period=period)
    ends = itertools.cycle(["SIGTERM", "SIGINT"] if how == "signal" else ["SIGKILL"])
    done = 0
    while done < count:
        broken = work / f"broken{done}"
        wanted = min(_ENDS_OF_A_RUN, count - done)
        found = list(_one_run(drill, unbroken, broken, wanted, ends, rng))
        different = drill.goes_on(unbroken, broken)
        for trial in found:
            done += 1
            lost = trial.lost or (
                f"its run ended otherwise: {different}" * bool(different)
            )
            yield dataclasses.replace(trial, lost=lost)
        if not different:
            shutil.rmtree(broken)


def _one_run(drill, unbroken, broken, wanted, ends, rng) -> Iterator[trials.Trial]:
    """Starts a run `wanted` times and ends it at random moments."""
    lasts_s = dict.fromkeys(("start", "compile"), 1.0)
    phases = _PHASES if drill.topology == "1" else _PHASES[1:]
    phases = [rng.choice(phases) for _ in range(wanted - 1)] + ["end"]
    targets = sorted(rng.randrange(1, drill.steps) for _ in phases)
    for phase, target in zip(phases, targets, strict=True):
        # A step that this start, not one before, will log.
        step = max(target, last_logged(broken) + 1)
        if phase == "evaluation":
            step = -(-step // drill.eval_period) * drill.eval_period
        if phase == "end" or step >= drill.steps:
            phase, step = "end", drill.steps
        started = drill.start(broken, forked=phase != "import")
        when = _wait_for(broken, started, phase, step, lasts_s, rng)
        if all(process.poll() is not None for process in started):
            for process in started:
                if process.poll():
                    yield trials.Trial(
                        phase, when, f"ended by itself: {process.output()[-2000:]}"
                    )
            continue  # It was done before the moment came.
        logged, name = last_logged(broken), next(ends)
        lost = _end(started, name, rng, logged == drill.steps)
        lost = lost or inspect(drill, unbroken, broken, logged, name)
        yield trials.Trial(f"{name} in {phase}", f"{when}, step {logged} logged", lost)


def _wait_for(
    model_dir: pathlib.Path,
    started: list[processes.Process | processes.FreshProcess],
    phase: str,
    step: int,
    lasts_s: dict[str, float],
    rng: random.Random,
) -> str:
    """Waits for a random moment of a phase; returns it in words.

    `lasts_s` holds how long phases last, in seconds, and is updated.
    """
    begin = time.monotonic()

    def wait(ready) -> float:
        while not ready() and all(process.poll() is None for process in started):
            if time.monotonic() - begin > _LIMIT_S:
                raise TimeoutError(f"{model_dir}: no sign of {phase} {step}")
            time.sleep(0.002)
        return time.monotonic() - begin

    def pause(longest_s: float, shortest_s: float = 0.0) -> str:
        pause_s = rng.uniform(shortest_s, longest_s)
        end = time.monotonic() + pause_s
        wait(lambda: time.monotonic() >= end)
        return f"{1000 * pause_s:.0f} ms"

    if phase == "import":
        return f"{pause(*_IMPORTS_S)} after the start"
    if phase == "start":
        return f"{pause(lasts_s['start'])} after the start"
    lasts_s["start"] = wait(lambda: COMPILES in started[0].output())
    if phase == "compile":
        return f"{pause(lasts_s['compile'])} into the compilation"
    first = last_logged(model_dir)
    lasts_s["compile"] = wait(lambda: last_logged(model_dir) > first) - lasts_s["start"]
    wait(lambda: last_logged(model_dir) >= step)
    if phase != "save":
        return f"{pause(0.5 if phase == 'end' else 0.1)} after step {step}"
    wait(lambda: any((model_dir / "checkpoints").glob("*.orbax-checkpoint-tmp")))
    return f"{pause(0.1)} into the save after step {step}"


def _end(started, name: str, rng: random.Random, may_be_done: bool) -> str:
    """Sends a signal to one process and waits for all; returns what went wrong."""
    number = signal.Signals[name]
    begin = time.monotonic()
    if number == signal.SIGKILL:
        # The others a second later, in their own state.
        for process in rng.sample(started, len(started)):
            process.kill()
            process.wait()
            time.sleep(1.0 * (len(started) > 1))
        return ""
    rng.choice(started).send_signal(number)
    for process in started:
        try:
            code = process.wait(max(begin + STOP_LIMIT_S - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            for each in started:
                each.kill()
            return f"still there after {STOP_LIMIT_S:.0f} s"
        # Before the run takes signals, SIGTERM ends it as any other process.
        if code not in (128 + number, -number) and not (may_be_done and code == 0):
            return f"exit status {code}: {process.output()[-2000:]}"
        if "Traceback" in process.output():
            return f"a traceback: {process.output()[-2000:]}"
    return ""


def inspect(drill, unbroken, broken, logged: int, name: str) -> str:
    """What is wrong with the checkpoint that the next start will use."""
    choice = manifests.choose(epath.Path(broken / "checkpoints"), None)
    newest = choice["step"]
    if choice["damaged"]:
        return f"damaged steps: {choice['damaged']}"
    if name == "SIGKILL":
        # A save begins after the one before it is committed.
        expected = (logged - 1) // drill.checkpoint_period * drill.checkpoint_period
        expected -= drill.checkpoint_period
    else:
        expected = logged
    if newest is None:
        return f"no checkpoint at step {logged}" if expected > 0 else ""
    if newest < expected:
        return f"resumes at step {newest}, and step {logged} was logged"
    return "; ".join(compare_steps(unbroken, broken, newest))


def differences(unbroken: paths.Place, broken: paths.Place, steps: int) -> list[str]:
    """What differs between two finished runs, leaving times aside."""
    found = compare_steps(unbroken, broken, steps)
    logs = metric_log(unbroken), metric_log(broken)
    if list(logs[0]) != list(range(1, steps + 1)):
        found.append(f"unbroken run: logged steps {list(logs[0])}")
    if list(logs[0]) != list(logs[1]):
        found.append(f"logged steps: {list(logs[0])} and {list(logs[1])}")
    for step in logs[0].keys() & logs[1].keys():
        if logs[0][step] != logs[1][step]:
            found.append(f"log of step {step}: {logs[0][step]} and {logs[1][step]}")
    return found


def compare_steps(unbroken: paths.Place, broken: paths.Place, step: int) -> list[str]:
    """What differs between the checkpoints of one step of two runs."""
    (one, meta_one), (two, meta_two) = (_read(d, step) for d in (unbroken, broken))
    found = [f"only one has {name}" for name in sorted(one.keys() ^ two.keys())]
    for name in sorted(one.keys() & two.keys()):
        a, b = one[name], two[name]
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            found.append(f"step {step}: {name} differs")
    found += [f"step {step}: {line}" for line in differing.lines(meta_one, meta_two)]
    return found


def metric_log(model_dir: paths.Place) -> dict[int, Mapping[str, Any]]:
    """Logged scalars by step, without times; a step logged twice is an error."""
    path = model_dir / "metrics.jsonl"
    if not path.exists():
        return {}
    log: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # Cut by a kill.
        # Scalars of the step and of its evaluation may be lines of their own.
        for key, value in json.loads(line).items():
            if key.startswith("timing/"):
                continue
            entry = log.setdefault(json.loads(line)["step"], {})
            if key in entry and key != "step":
                raise ValueError(f"{path}: {key} of step {entry['step']} twice")
            entry[key] = value
    return log


def last_logged(model_dir: pathlib.Path) -> int:
    """Last step in the log; 0 before the first."""
    path = model_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    complete = path.read_bytes().rpartition(b"\n")[0]
    return json.loads(complete.rpartition(b"\n")[2])["step"] if complete else 0


def _read(model_dir: paths.Place, step: int) -> tuple[dict[str, np.ndarray], Any]:
    folder = model_dir / "checkpoints" / str(step)
    arrays = checkpoint_cases.read_arrays(folder)
    metadata = checkpoint_cases.read_metadata(folder)
    metadata.pop("config", None)  # Says how many checkpoints are kept.
    # A step at which a signal came is evaluated after the restart.
    metadata.pop("evaluated")
    metadata.pop("logged")
    return arrays, metadata
