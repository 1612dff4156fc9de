r"""Kills a training run at random moments and compares it with an unbroken one.

    python tests/drills/resume.py --topology=2x2 --steps=200 --kills=10

Runs `python -m prottrans_jax.train` as a user would: dropout, shuffling and packing
on, Adafactor; `--family=bert` and so on take that family's sample leaf. After every
kill -9, the checkpoint that the next start will use is compared with the unbroken
run's of the same step; at the end, every step of the metric log and the final
parameters, optimizer and loader state. All bit for bit. Prints one line for each kill;
exit status 1 if anything differs.

`--how=signal` sends SIGTERM and SIGINT in turn instead, to one process, and wants the
exit statuses 143 and 130 within 30 s, with a checkpoint of the step then reached.

Topologies: 1 = one device, 4 = four virtual devices of one process, 2x2 = two
processes of two devices, where one process is killed and the other a second later.
"""

import argparse
from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from etils import epath
import numpy as np

from cases import checkpoint_cases, process_cases
from prottrans_jax.checkpoints import manifests
from prottrans_jax.data.records import record_writer

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
DROPOUT_RATE = 0.1
"""
FAMILIES = {
    "bert": "masked_lm_pairs",
    "albert": "ngram_masked_lm",
    "electra": "masked_lm_kept",
    "xlnet": "permutation_lm",
    "transformer_xl": "causal_lm",
}
PROCESSES = {"1": (1, 1), "4": (1, 4), "2x2": (2, 2)}
HOW = {"kill": ("step", "save", "start"), "signal": ("SIGTERM", "SIGINT")}
LIMIT_S = 600.0
STOP_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill and what the run was found to hold after it.

    Attributes:
      when: what was waited for.
      logged: last step in the log at the kill; 0 before the first.
      resumes_at: newest sound checkpoint; None before the first.
      equal: whether that is bit-equal to the unbroken run's.
    """

    when: str
    logged: int
    resumes_at: int | None
    equal: bool


@dataclasses.dataclass(frozen=True)
class Drill:
    """A run and how it is started.

    Attributes:
      work: scratch directory.
      topology: key of `PROCESSES`.
      steps: of the whole run.
      checkpoint_period: in steps.
      eval_period: in steps.
      family: key of `FAMILIES`; T5 otherwise.
    """

    work: pathlib.Path
    topology: str
    steps: int
    checkpoint_period: int
    eval_period: int
    family: str | None = None

    @property
    def leaf(self) -> str:
        """Text of its gin leaf."""
        if self.family is None:
            return LEAF
        return FAMILY_LEAF.format(family=self.family, objective=FAMILIES[self.family])

    def start(
        self, model_dir: pathlib.Path, keep: int, checkpoint_period: int | None = None
    ) -> list[subprocess.Popen]:
        num_processes, num_devices = PROCESSES[self.topology]
        flags = [
            f"--gin_file={self.work / 'leaf.gin'}",
            f"--model_dir={model_dir}",
            f"--data_dir={self.work / 'records'}",
            "--notensorboard",
            f"--gin_bindings=TRAIN_STEPS = {self.steps}",
            "--gin_bindings=CHECKPOINT_PERIOD = "
            f"{checkpoint_period or self.checkpoint_period}",
            f"--gin_bindings=EVAL_PERIOD = {self.eval_period}",
            f"--gin_bindings=run_settings.Checkpoints.keep = {keep}",
        ]
        if num_processes > 1:
            address = f"localhost:{process_cases.free_port()}"
            flags += [
                f"--coordinator_address={address}",
                f"--num_processes={num_processes}",
            ]
        processes = []
        for index in range(num_processes):
            own = [f"--process_id={index}"] if num_processes > 1 else []
            output = (self.work / f"{model_dir.name}.{index}.log").open("ab")
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "prottrans_jax.train", *flags, *own],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ
                    | {
                        "XLA_FLAGS": "--xla_force_host_platform_device_count="
                        f"{num_devices}"
                    },
                )
            )
            output.close()
        return processes

    def finish(self, model_dir: pathlib.Path, processes: list[subprocess.Popen]):
        for index, process in enumerate(processes):
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                kill(processes)
                code = "none in time"
            if code:
                log = self.work / f"{model_dir.name}.{index}.log"
                kill(processes)
                raise RuntimeError(
                    f"{model_dir}: exit status {code}\n{log.read_text()[-4000:]}"
                )


def run(
    drill: Drill, kills: int, seed: int, how: str = "kill"
) -> tuple[list[Kill], list[str]]:
    """Makes the unbroken run and the killed one.

    Args:
      drill: the run.
      kills: how many times the other one is killed.
      seed: of the moments.
      how: key of `HOW`.

    Returns:
      The kills, and what differs between the two runs in the end (nothing).
    """
    rng = random.Random(seed)
    _prepare(drill.work, drill.leaf)
    unbroken, broken = drill.work / "unbroken", drill.work / "broken"
    # A signal saves the step it comes at, so all are needed to compare with.
    first = drill.start(unbroken, 10**6, 1 if how == "signal" else None)
    done: list[Kill] = []
    steps = sorted(rng.randrange(drill.steps) for _ in range(kills))
    for number, step in enumerate(steps):
        kind = HOW[how][number % len(HOW[how])]
        # A step that this start, not one before, will log.
        step = max(step, max(metric_log(broken), default=0) + 1)
        if step >= drill.steps:
            print(f"{number + 1:>4}  not done: the run is at its last step")
            continue
        processes = drill.start(broken, keep=2)
        when = _wait_for(broken, processes, kind, step, rng)
        logged = max(metric_log(broken), default=0)
        if how == "signal":
            when += _stop(processes, signal.Signals[kind], rng)
        else:
            kill(processes, rng, pause_s=1.0)
        drill.finish(unbroken, first)
        done.append(_inspect(unbroken, broken, when, logged))
        if how == "signal" and (done[-1].resumes_at or 0) < logged:
            raise RuntimeError(f"{kind}: step {logged} was logged, but {done[-1]}")
        print(_row(number + 1, done[-1]), flush=True)
    drill.finish(broken, drill.start(broken, keep=2))
    drill.finish(unbroken, first)
    return done, differences(unbroken, broken, drill.steps)


def kill(processes, rng: random.Random | None = None, pause_s: float = 0.0) -> None:
    """Kills one process at random, and the others after a pause."""
    order = list(processes)
    if rng is not None:
        rng.shuffle(order)
    for number, process in enumerate(order):
        if number == 1:
            time.sleep(pause_s)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in order:
        process.wait()


def _stop(processes, number: signal.Signals, rng: random.Random) -> str:
    """Sends a signal to one process and waits for all; returns how long that took."""
    begin = time.monotonic()
    rng.choice(processes).send_signal(number)
    for process in processes:
        try:
            code = process.wait(begin + STOP_LIMIT_S - time.monotonic())
        except subprocess.TimeoutExpired:
            kill(processes)
            raise RuntimeError(f"{number.name}: still there after 30 s") from None
        if code != 128 + number:
            kill(processes)
            raise RuntimeError(f"{number.name}: exit status {code}")
    return f", gone in {time.monotonic() - begin:.1f} s"


def differences(unbroken: pathlib.Path, broken: pathlib.Path, steps: int) -> list[str]:
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


def compare_steps(unbroken: pathlib.Path, broken: pathlib.Path, step: int) -> list[str]:
    """What differs between the checkpoints of one step of two runs."""
    (one, meta_one), (two, meta_two) = (_read(d, step) for d in (unbroken, broken))
    found = [f"only one has {name}" for name in sorted(one.keys() ^ two.keys())]
    for name in sorted(one.keys() & two.keys()):
        a, b = one[name], two[name]
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            found.append(f"step {step}: {name} differs")
    if meta_one != meta_two:
        found.append(f"step {step}: metadata {meta_one} and {meta_two}")
    return found


def metric_log(model_dir: pathlib.Path) -> dict[int, Mapping[str, Any]]:
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


def _inspect(unbroken, broken, when: str, logged: int) -> Kill:
    newest = manifests.choose(epath.Path(broken / "checkpoints"), None)["step"]
    if newest is None:
        return Kill(when, logged, None, True)
    return Kill(when, logged, newest, not compare_steps(unbroken, broken, newest))


def _read(model_dir: pathlib.Path, step: int) -> tuple[dict[str, np.ndarray], Any]:
    folder = model_dir / "checkpoints" / str(step)
    arrays = checkpoint_cases.read_arrays(folder)
    metadata = checkpoint_cases.read_metadata(folder)
    metadata.pop("config", None)  # Says how many checkpoints are kept.
    return arrays, metadata


def _wait_for(model_dir, processes, kind: str, step: int, rng: random.Random) -> str:
    """Waits for the moment of a kill; returns it in words."""
    deadline = time.monotonic() + LIMIT_S

    def waiting() -> Iterator[None]:
        while all(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{model_dir}: no sign of {kind} {step}")
            yield
            time.sleep(0.001)

    if kind == "start":
        pause_s = rng.uniform(0, 25)
        end = time.monotonic() + pause_s
        for _ in waiting():
            if time.monotonic() > end:
                break
        return f"{pause_s:.1f} s after the start"
    for _ in waiting():
        if max(metric_log(model_dir), default=0) >= step:
            break
    if kind in ("step", *HOW["signal"]):
        pause_s = rng.uniform(0, 0.05)
        time.sleep(pause_s)
        what = "" if kind == "step" else f"{kind} "
        return f"{what}{1000 * pause_s:.0f} ms after step {step}"
    for _ in waiting():
        if any((model_dir / "checkpoints").glob("*.orbax-checkpoint-tmp")):
            break
    pause_s = rng.uniform(0, 0.05)
    time.sleep(pause_s)
    return f"{1000 * pause_s:.0f} ms into the save after step {step}"


def _prepare(work: pathlib.Path, leaf: str) -> None:
    """Writes the leaf and the records of made-up proteins."""
    (work / "leaf.gin").write_text(leaf)
    rng = random.Random(0)

    def proteins(name: str, count: int) -> Iterator[tuple[str, str]]:
        for number in range(count):
            length = rng.randrange(5, 90)
            yield (
                f"{name}{number}",
                "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=length)),
            )

    with record_writer.Writer(work / "records", name="drill") as writer:
        # 1,300 rows of 48: a run of 200 steps of 8 rows enters its second epoch.
        writer.add_shard("train", proteins("T", 1300))
        writer.add_shard("validation", proteins("V", 60))


def _row(number: int, kill: Kill) -> str:
    resumes_at = "scratch" if kill.resumes_at is None else str(kill.resumes_at)
    return (
        f"{number:>4}  {kill.when:<44} {kill.logged:>12} {resumes_at:>11} "
        f"{'yes' if kill.equal else 'NO':>6}"
    )


def main() -> int:
    """Runs the drill that the flags describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", choices=PROCESSES, default="1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--how", choices=HOW, default="kill")
    parser.add_argument("--family", choices=FAMILIES, help="default: T5")
    parser.add_argument("--checkpoint_period", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="kept; default: removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or pathlib.Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        drill = Drill(
            work, args.topology, args.steps, args.checkpoint_period, 50, args.family
        )
        print(f"topology {args.topology}, {args.steps} steps, seed {args.seed}")
        print(
            "kill  moment                                logged step  resumes at  equal"
        )
        kills, found = run(drill, args.kills, args.seed, args.how)
    print("\n".join(found) or f"All {args.steps} log lines and the final state equal.")
    return 1 if found or not all(kill.equal for kill in kills) else 0


if __name__ == "__main__":
    sys.exit(main())
