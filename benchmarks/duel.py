"""Compares peers that take turns, each in its own process, loaded and warmed up.

A worker reads lines "kind index" and answers each with the figures of one step. Rounds
run as A B C A B C, so that a slowdown of the machine affects all peers.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple


def serve(peer: Any, batches: dict[str, list[dict]]) -> None:
    """The worker's loop: runs the requested steps.

    Args:
      peer: Has `step(features) -> loss`, `about` (a description of its versions), and,
        if another memory than the process's is measured, `peak_gib()`.
      batches: Batches by kind; each {"features", "residues", "tokens"}.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Output of libraries goes to stderr.
    for line in sys.stdin:
        kind, index = line.split()
        batch = batches[kind][int(index) % len(batches[kind])]
        cpu, start = time.process_time(), time.perf_counter()
        loss = peer.step(batch["features"])
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "residues": batch["residues"],
            "tokens": batch["tokens"],
            "loss": loss,
            "peak_gib": getattr(peer, "peak_gib", _resident_peak_gib)(),
            "about": peer.about,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _resident_peak_gib() -> float:
    # Not `ru_maxrss`: a process inherits its parent's.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20  # kB


def busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    with open("/proc/stat") as file:
        user, nice, system = (int(x) for x in file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> None:
    """Waits until others use under a tenth of the CPUs, at most `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        start = busy_seconds()
        time.sleep(1.0)
        if busy_seconds() - start < 0.1 * (os.cpu_count() or 1):
            return


class Worker:
    """Starts and drives a worker process."""

    def __init__(self, command: list[str]):
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def step(self, kind: str, index: int, patience: float = 0.0) -> dict:
        """Runs one step once the machine is quiet; see `wait_for_quiet`."""
        wait_for_quiet(patience)
        before = busy_seconds()
        print(kind, index, file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"worker died with {code}: {self.errors.read()[-2000:]}")
        figure = json.loads(line)
        others = busy_seconds() - before - figure["cpu_seconds"]
        share = others / figure["seconds"] / (os.cpu_count() or 1)
        figure["others"] = max(0.0, share)
        return figure

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


class Lane(NamedTuple):
    """One line of the comparison: the kind of batches and their worker."""

    kind: str
    worker: Worker


def take_turns(
    lanes: dict[str, Lane], rounds: int, warmup: int, patience: float = 0.0
) -> dict[str, list[dict]]:
    """Figures of each lane for `rounds` rounds, after `warmup` rounds."""
    results: dict[str, list[dict]] = {name: [] for name in lanes}
    for round_ in range(-warmup, rounds):
        for name, (kind, worker) in lanes.items():
            index = round_ + warmup
            wait = patience if round_ >= 0 else 0.0
            figure = worker.step(kind, index, wait)
            if figure["others"] > 0.15 and wait:  # Disturbed: run once more.
                again = worker.step(kind, index, wait)
                figure = min(figure, again, key=lambda f: f["others"])
            if round_ >= 0:
                results[name].append(figure)
            rate = figure["residues"] / figure["seconds"]
            print(
                f"round {round_:2d} {name:14s} {figure['seconds']:7.2f} s "
                f"{figure['cpu_seconds']:7.2f} CPU s {rate:7.0f} residues/s "
                f"fill {figure['residues'] / figure['tokens']:.3f} "
                f"loss {figure['loss']:.4f} peak {figure['peak_gib']:.2f} GiB "
                f"others {figure['others']:.0%}",
                flush=True,
            )
    for lane in lanes.values():
        lane.worker.close()
    return results


def table(results: dict[str, list[dict]], reference: str) -> str:
    """Table of each lane's medians, and ratios of `reference` to the others."""

    def median(name: str, value) -> float:
        return statistics.median(value(f) for f in results[name])

    def rate(figure: dict) -> float:
        return figure["residues"] / figure["seconds"]

    def per_token(figure: dict) -> float:
        return figure["tokens"] / figure["seconds"]

    def per_cpu(figure: dict) -> float:
        return figure["residues"] / figure["cpu_seconds"]

    lines = [
        "| | s per step | residues/s | tokens/s | residues in tokens | "
        "residues per CPU s | peak GiB | other processes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in results:
        fill = median(name, lambda f: f["residues"] / f["tokens"])
        lines.append(
            f"| {name} | {median(name, lambda f: f['seconds']):.2f} | "
            f"{median(name, rate):.0f} | {median(name, per_token):.0f} | {fill:.1%} | "
            f"{median(name, per_cpu):.0f} | {results[name][-1]['peak_gib']:.2f} | "
            f"{median(name, lambda f: f['others']):.0%} |"
        )
    lines.append("")
    ours = results[reference]
    for name in results:
        if name == reference:
            continue
        ratio_texts = []
        for label, value in (
            ("residues/s", rate),
            ("tokens/s (speed without packing)", per_token),
            ("residues per CPU second", per_cpu),
        ):
            ratios = [
                value(a) / value(b) for a, b in zip(ours, results[name], strict=True)
            ]
            ratio_texts.append(
                f"{label} **{statistics.median(ratios):.2f}** "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        ratios_line = "; ".join(ratio_texts)
        lines.append(f"Ours over {name}, median (range) of rounds: {ratios_line}.")
        lines.append("")
    return "\n".join(lines)
