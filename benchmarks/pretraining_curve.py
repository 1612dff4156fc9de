"""Compares packed and padded rows at equal CPU time, and evaluates the packed run.

  python -m prottrans_jax.prepare --input sprot50_train-*.fasta.gz (with commas) \
      --validation_input sprot50_valid.fasta.gz --output RECORDS
  python benchmarks/pretraining_curve.py --data_dir=RECORDS --run_dir=DIR \
      --minutes=60 --write

Two runs of `python -m prottrans_jax.train` from the same random weights, each on its
own core, are stopped by SIGTERM after this many minutes of CPU time. The time axis of
the curve is this CPU time, which is the wall time of an idle machine. A second start
with the same arguments resumes them.

Then the packed run's newest checkpoint is evaluated on each validation protein, alone
in its row: the loss at hidden positions, and that of the residue frequencies at the
same positions, with an interval over proteins (bootstrap).
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import run_logs

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "pretraining_curve.gin"
PICTURE = HERE.parent / "docs" / "images" / "pretraining_curve.png"
RUNS = {"packed": True, "padded": False}


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_step(directory: pathlib.Path) -> int:
    """The newest step in a run's log; 0 before the first."""
    log = directory / "metrics.jsonl"
    # The last line may be incomplete.
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def train(name: str, core: int, options: argparse.Namespace) -> subprocess.Popen:
    """Starts a run on a core."""
    directory = pathlib.Path(options.run_dir) / name
    directory.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "prottrans_jax.train",
        f"--gin_file={CONFIG}",
        f"--model_dir={directory}",
        f"--data_dir={options.data_dir}",
        f"--gin_bindings=PACK = True\ntrain/loader.RowLoader.pack = {RUNS[name]}",
        "--notensorboard",
    ]
    with open(directory / "log.txt", "a") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )


def run_all(options: argparse.Namespace) -> None:
    """Runs both to the end; logs {"step", "cpu_seconds"} of each to clock.jsonl."""
    processes = {
        name: train(name, core, options)
        for name, core in zip(RUNS, sorted(os.sched_getaffinity(0)), strict=False)
    }
    used: dict[str, float] = {}
    signalled: set[str] = set()
    for name in processes:
        clock = pathlib.Path(options.run_dir) / name / "clock.jsonl"
        lines = clock.read_text().splitlines() if clock.exists() else []
        used[name] = json.loads(lines[-1])["cpu_seconds"] if lines else 0.0
    while processes:
        time.sleep(1.0)
        for name, process in list(processes.items()):
            if process.poll() is not None:
                if process.returncode != 128 + signal.SIGTERM:
                    raise RuntimeError(
                        f"{options.run_dir}/{name}: exit {process.returncode}, see "
                        "log.txt"
                    )
                del processes[name]
                continue
            seconds = used[name] + cpu_seconds(process.pid)
            directory = pathlib.Path(options.run_dir) / name
            with open(directory / "clock.jsonl", "a") as file:
                entry = {"step": last_step(directory), "cpu_seconds": seconds}
                print(json.dumps(entry), file=file)
            # Only once: a second signal ends a run without a checkpoint.
            if seconds > 60 * options.minutes and name not in signalled:
                signalled.add(name)
                process.send_signal(signal.SIGTERM)


def read_curve(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Evaluations of a run by metric, with `step` and `minutes` of CPU time."""
    minutes_at_step: dict[int, float] = {}
    for line in (directory / "clock.jsonl").read_text().splitlines():
        entry = json.loads(line)
        minutes_at_step.setdefault(entry["step"], entry["cpu_seconds"] / 60)
    curve: dict[str, list[float]] = {}
    for entry in run_logs.lines(directory):
        metrics = run_logs.evaluation(entry)
        later = [
            minutes
            for step, minutes in minutes_at_step.items()
            if step >= entry["step"]
        ]
        if not metrics or not later:
            continue
        metrics |= {"step": entry["step"], "minutes": min(later)}
        for key, value in metrics.items():
            curve.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in curve.items()}


def losses_by_protein(run_dir: pathlib.Path, data_dir: str) -> dict[str, np.ndarray]:
    """Sums of losses over the hidden positions of each validation protein.

    Returns:
      `masked`, `masked_unigram`, `masked_count` (number of positions) and the same for
      `hidden` (masked or substituted), each [proteins]. Unigram losses use the residue
      frequencies of the training split at the same positions.
    """
    from prottrans_jax.config import building

    building.parse(
        [CONFIG], [f"MODEL_DIR = {str(run_dir)!r}", f"DATA_DIR = {data_dir!r}"]
    )
    import jax
    import jax.numpy as jnp

    from prottrans_jax.checkpoints import stored_steps
    from prottrans_jax.data.corruption import position_kinds
    from prottrans_jax.data.records import store
    from prottrans_jax.data.rows import loader
    from prottrans_jax.objectives import losses
    from prottrans_jax.proteins import vocabulary
    from prottrans_jax.training import train_state, trainer

    bound = building.bound(trainer.train)
    objective, optimizer, partitioner = (
        building.build(bound[name])
        for name in ("objective", "optimizer", "partitioner")
    )
    data = loader.RowLoader(
        task=building.build("%MIXTURE_OR_TASK_NAME"),
        split="validation",
        batch_size=8,
        feature_lengths=building.build("%TASK_FEATURE_LENGTHS"),
        pack=False,
        shuffle=False,
        num_epochs=1,
        data_dir=data_dir,
    )
    plan = train_state.plan(
        objective, optimizer, partitioner, train_state.batch_shapes(data)
    )
    params = stored_steps.load_params(run_dir, plan.abstract.params)

    counts = np.zeros(128)
    for letter, count in store.open(data_dir).split("train").alphabet.items():
        counts[vocabulary.PROT_T5.byte_table[ord(letter)]] += count
    with np.errstate(divide="ignore"):
        unigram = -np.log(counts / counts.sum()).astype(np.float32)
    unigram[~np.isfinite(unigram)] = 0.0  # Never a target at hidden positions.

    @jax.jit
    def sums(params, batch):
        logits = objective.model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            deterministic=True,
        )
        targets = batch["decoder_target_tokens"]
        nll = losses.softmax_cross_entropy(logits, targets).nll
        result = {}
        for name, chosen in (
            ("masked", batch["decoder_corrupted"] == position_kinds.MASKED),
            ("hidden", batch["decoder_corrupted"] > 0),
        ):
            result[name] = jnp.sum(nll * chosen, axis=1)
            result[f"{name}_unigram"] = jnp.sum(
                jnp.asarray(unigram)[targets] * chosen, axis=1
            )
            result[f"{name}_count"] = jnp.sum(chosen, axis=1)
        return result

    proteins: dict[str, dict[str, float]] = {}
    for i in range(data.num_batches):
        batch = data.batch(i)
        rows = jax.device_get(sums(params, {k: batch[k] for k in objective.features}))
        for row, protein in enumerate(data.example_ids(i)):
            entry = proteins.setdefault(protein, dict.fromkeys(rows, 0.0))
            for key, values in rows.items():
                entry[key] += float(values[row])
    return {
        key: np.array([entry[key] for entry in proteins.values()])
        for key in next(iter(proteins.values()))
    }


def bootstrap(
    figures: dict[str, np.ndarray], what: str, samples: int = 10_000
) -> dict[str, tuple[float, float, float]]:
    """(mean, 2.5 %, 97.5 %) of the loss per position, of the model and the unigram.

    Proteins are drawn with replacement. A mean is a ratio of sums, so that all
    positions have equal weight.
    """
    model, unigram = figures[what], figures[f"{what}_unigram"]
    count = figures[f"{what}_count"]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(count), (samples, len(count)))
    total = count[drawn].sum(1)
    result = {}
    for name, values in (
        ("model", model),
        ("unigram", unigram),
        ("difference", model - unigram),
    ):
        low, high = np.percentile(values[drawn].sum(1) / total, [2.5, 97.5])
        result[name] = (values.sum() / count.sum(), low, high)
    return result


def draw(curves: dict[str, dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Draws the validation losses of both runs over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (
        ("masked_loss", "Masked residues"),
        ("corrupted_loss", "All hidden residues (masked or substituted)"),
    )
    for axis, (key, title) in zip(axes, panels, strict=True):
        for name, curve in curves.items():
            axis.plot(curve["minutes"], curve[key], label=f"{name} rows", marker=".")
        entropy = next(iter(curves.values()))["unigram_entropy"][-1]
        axis.axhline(entropy, color="0.4", linestyle="--", label="unigram entropy")
        axis.set(title=title, xlabel="minutes of one CPU core", ylabel="nats a residue")
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Picture {path}")


def main() -> None:
    """Runs both and compares them; with --write, records the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="prepared records")
    parser.add_argument("--run_dir", required=True, help="where the runs go")
    parser.add_argument("--minutes", type=float, default=60.0, help="of each core")
    parser.add_argument("--report_only", action="store_true", help="runs are there")
    parser.add_argument("--write", action="store_true", help="RESULTS.md, picture")
    options = parser.parse_args()
    run_dir = pathlib.Path(options.run_dir)
    if not options.report_only:
        run_all(options)
    curves = {name: read_curve(run_dir / name) for name in RUNS}
    shared_end = min(curve["minutes"][-1] for curve in curves.values())
    lines = ["| rows | minutes | step | loss | masked | hidden | unigram entropy |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, curve in curves.items():
        last = np.flatnonzero(curve["minutes"] <= shared_end)[-1]
        figures = [
            f"{curve[key][last]:.4f}"
            for key in ("loss", "masked_loss", "corrupted_loss", "unigram_entropy")
        ]
        lines.append(
            f"| {name} | {curve['minutes'][last]:.0f} | {curve['step'][last]} | "
            + " | ".join(figures)
            + " |"
        )
    packed, padded = curves["packed"], curves["padded"]
    last = np.flatnonzero(padded["minutes"] <= shared_end)[-1]
    goal = padded["masked_loss"][last]
    reached = np.flatnonzero(packed["masked_loss"] <= goal)
    if len(reached):
        lines += [
            "",
            f"Packed rows reached the padded run's last masked loss, {goal:.4f}, after "
            f"{packed['minutes'][reached[0]]:.0f} minutes instead of "
            f"{padded['minutes'][last]:.0f}.",
        ]
    figures = losses_by_protein(run_dir / "packed", options.data_dir)
    lines += [
        "",
        f"The packed run's last checkpoint on {len(figures['masked'])} validation "
        "proteins, each alone in its rows; 95 % interval over proteins:",
        "",
        "| positions | number | model | residue frequencies | difference |",
        "|---|---|---|---|---|",
    ]
    for what in ("masked", "hidden"):
        cells = [
            f"{mean:.4f} ({low:.4f} to {high:.4f})"
            for mean, low, high in bootstrap(figures, what).values()
        ]
        count = int(figures[f"{what}_count"].sum())
        lines.append(f"| {what} | {count:,} | " + " | ".join(cells) + " |")
    body = "\n".join(lines)
    print(body)
    if options.write:
        import report

        draw(curves, PICTURE)
        report.replace_section(
            "Packed against padded rows",
            f"{body}\n\n![validation curves](../docs/images/{PICTURE.name})\n\n"
            f"{CONFIG.name}, one core a run; {report.machine()}.\n\n"
            "`python benchmarks/pretraining_curve.py --data_dir=RECORDS --run_dir=DIR "
            f"--minutes={options.minutes:g} --write`",
        )
    else:
        draw(curves, run_dir / PICTURE.name)


if __name__ == "__main__":
    main()
