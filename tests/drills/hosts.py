"""Runs of several processes that lose one, or see a NaN on one of them."""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np

from cases import process_cases, runs, trainer_cases
from drills import processes, resume, trials, virtual_hosts
from prottrans_jax import partitioning
from prottrans_jax.distributed import start
from prottrans_jax.training import logbook

# What happens to a process; seconds within which all others must end; settings.
_STEP_S = 20
LOSSES = {
    # The kernel closes its connections at once.
    "killed": (20.0, ()),
    # Limit of a step, polls, and the others that wait to be told.
    "stopped": (_STEP_S + 25.0, (f"run_settings.Limits.step_s = {_STEP_S}",)),
    "cut off": (_STEP_S + 25.0, (f"run_settings.Limits.step_s = {_STEP_S}",)),
    # TCP_USER_TIMEOUT of 100 s, before the default limit of a step, 120 s.
    "cut off, default limits": (130.0, ()),
}
_LIMIT_S = 300.0
_LOST, _STALLED, _NOT_FINITE = 1, 75, 3


def lost(
    work: pathlib.Path,
    count: int,
    *,
    topology: str = "2x4",
    losses: tuple[str, ...] = ("killed", "stopped", "cut off"),
    seed: int = 0,
) -> Iterator[trials.Trial]:
    """One process is lost: all others end in time and name it; the run goes on.

    Args:
      work: scratch directory.
      count: number of trials.
      topology: key of `resume.TOPOLOGIES`.
      losses: keys of `LOSSES`, in turn. Where virtual hosts are not possible, hosts
        are not cut off.
      seed: of the moments and of the lost processes.
    """
    rng = random.Random(seed)
    if not virtual_hosts.are_possible():
        losses = tuple(loss for loss in losses if not loss.startswith("cut off"))
        print("Not root, or no iproute2: no host is cut off.")
    drill = resume.Drill(work, topology, steps=18, checkpoint_period=4)
    drill.prepare()
    unbroken = work / "unbroken"
    drill.finish(unbroken, keep=10**6)
    for number in range(count if losses else 0):
        broken = work / f"broken{number}"
        loss = losses[number % len(losses)]
        victim = rng.randrange(resume.TOPOLOGIES[topology][0])
        # In turn between two evaluations and at the second one, which follows step 12.
        # The first one of a process has the limit of a compilation.
        step = rng.randrange(7, 10) if number // len(losses) % 2 == 0 else 12
        what, problem = _lose(drill, broken, loss, victim, step)
        if not problem:
            problem = drill.goes_on(unbroken, broken)
        yield trials.Trial(f"{topology}, {loss}", what, problem)
        if not problem:
            shutil.rmtree(broken)


def _lose(
    drill: resume.Drill, broken: pathlib.Path, loss: str, victim: int, step: int
) -> tuple[str, str]:
    """Loses a process after a step; returns the trial in words, and its problem."""
    limit_s, settings = LOSSES[loss]
    count = resume.TOPOLOGIES[drill.topology][0]
    with contextlib.ExitStack() as stack:
        hosts = None
        if loss.startswith("cut off"):
            hosts = stack.enter_context(virtual_hosts.VirtualHosts(count, drill.work))
        started = drill.start(broken, settings=settings, hosts=hosts)
        stack.callback(lambda: [process.kill() for process in started])
        begin = time.monotonic()
        while resume.last_logged(broken) < step:
            if time.monotonic() - begin > _LIMIT_S:
                return "", f"no step {step}: {started[0].output()[-2000:]}"
            time.sleep(0.005)
        if hosts is not None:
            hosts.cut(victim)
        else:
            started[victim].send_signal(
                signal.SIGKILL if loss == "killed" else signal.SIGSTOP
            )
        begin = time.monotonic()
        # A host that is cut off ends by itself too.
        waits = [n for n in range(count) if n != victim or hosts is not None]
        problems = []
        for number in sorted(waits, key=lambda n: n == victim):
            left_s = max(begin + limit_s - time.monotonic(), 0.1)
            process = started[number]
            try:
                code = process.wait(left_s)
            except subprocess.TimeoutExpired:
                problems.append(f"process {number} is still there after {limit_s} s")
                continue
            line = _last_words(process.output())
            if code not in (_LOST, _STALLED):
                problems.append(f"process {number}: exit status {code}: {line}")
            if number != victim and f"process {victim} (" not in line:
                problems.append(f"process {number} does not name {victim}: {line}")
        took_s = time.monotonic() - begin
        what = f"process {victim} after step {step}, others ended in {took_s:.1f} s"
        return what, "; ".join(problems)


def _last_words(output: str) -> str:
    """The line with which a process ends."""
    lines = re.findall(r"^(?:error: |No progress for ).*$", output, re.MULTILINE)
    return lines[-1] if lines else output[-2000:]


class _PoisonedRows(trainer_cases.Batches):
    """Batches with one row that is not finite, so that one process has it."""

    def __init__(self, poisoned: dict[int, int]):
        super().__init__()
        self._rows = poisoned

    def features(self, index, rng):
        features = super().features(index, rng)
        if index in self._rows:
            weights = features["decoder_loss_weights"].copy()
            weights[self._rows[index]] *= np.inf
            features["decoder_loss_weights"] = weights
        return features


def nonfinite(
    work: pathlib.Path, count: int, *, topology: str = "2x4", seed: int = 0
) -> Iterator[trials.Trial]:
    """One process has a NaN: all end at that step, or all skip it."""
    rng = random.Random(seed)
    num_processes, num_devices = resume.TOPOLOGIES[topology]
    for number in range(count):
        policy = ("stop", "skip")[number % 2]
        index, row = rng.randrange(6), rng.randrange(trainer_cases.BATCH)
        port, folder = process_cases.free_port(), work / f"run{number}"
        folder.mkdir(parents=True)
        started = [
            processes.Process(
                _train_poisoned,
                (folder, f"localhost:{port}", num_processes, p, policy, {index: row}),
                work / f"run{number}.{p}.log",
                env={
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"
                },
            )
            for p in range(num_processes)
        ]
        codes = []
        for process in started:
            try:
                codes.append(process.wait(_LIMIT_S))
            except subprocess.TimeoutExpired:
                codes.append(None)
                process.kill()
        outputs = [process.output() for process in started]
        yield trials.Trial(
            f"{topology}, {policy}",
            f"step {index + 1}, row {row}",
            _disagreement(folder, policy, index + 1, codes, outputs),
        )


def _disagreement(folder, policy: str, step: int, codes: list, outputs: list) -> str:
    expected = _NOT_FINITE if policy == "stop" else 0
    if codes != [expected] * len(codes):
        return f"exit statuses {codes}: {outputs[0][-1000:]} {outputs[-1][-1000:]}"
    if policy == "stop":
        named = [re.findall(r"^error: Step (\d+)", text, re.M) for text in outputs]
        return "" if named == [[str(step)]] * len(named) else f"steps named: {named}"
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    skipped = [
        line["step"]
        for line in map(json.loads, lines)
        if line.get("train/skipped_steps")
    ]
    return "" if skipped == [step] else f"steps skipped: {skipped}"


def _train_poisoned(folder, coordinator, num_processes, process, policy, rows) -> int:
    start.initialize(coordinator, num_processes, process, timeout_s=120)
    arguments = trainer_cases.arguments(
        folder,
        train_data=_PoisonedRows(rows),
        partitioner=partitioning.Partitioner(num_devices=jax.device_count()),
        nonfinite_policy=policy,
        logs_period=1,
        total_steps=8,
    )
    try:
        runs.train(**arguments)
    except logbook.NonFiniteError as error:
        print(f"error: {error}", flush=True)
        return _NOT_FINITE
    return 0
