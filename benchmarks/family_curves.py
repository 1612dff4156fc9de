"""Trains each family for minutes on the sample: six curves and one table.

  python benchmarks/family_curves.py --run_dir=DIR --write

Runs the sample gin file of every family, one after another; a second start with the
same folder resumes. Then reads the metric logs: the loss on the whole validation split
at residues hidden from the model, and the unigram entropy of the residues, which is the
loss of a model that has learnt only their frequencies.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import run_logs

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "family_curves.png"


@dataclasses.dataclass(frozen=True)
class Family:
    """A sample run, and its metric for the comparison with the unigram entropy.

    Attributes:
      name: Name in the table.
      leaf: Gin file.
      key: Loss at residues that are hidden from the model. For BERT, ALBERT and ELECTRA
        those replaced by [MASK]: unchanged predicted residues could be copied.
      predicts: Description of `key`.
    """

    name: str
    leaf: str
    key: str
    predicts: str


FAMILIES = (
    Family("T5", "sample.gin", "masked_loss", "residues behind a sentinel"),
    Family("BERT", "sample_bert.gin", "masked_loss", "[MASK]"),
    Family("ALBERT", "sample_albert.gin", "masked_loss", "[MASK], n-grams"),
    Family("ELECTRA", "sample_electra.gin", "masked_loss", "[MASK], generator"),
    Family("XLNet", "sample_xlnet.gin", "loss", "spans, permuted"),
    Family(
        "Transformer-XL", "sample_transformer_xl.gin", "loss", "the next token, or eos"
    ),
)


def train(family: Family, directory: pathlib.Path) -> None:
    """Runs training to the end; returns at once if it is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "log.txt", "a") as log:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "prottrans_jax.train"),
                *(f"--gin_file={family.leaf}", f"--model_dir={directory}"),
                "--notensorboard",
            ],
            stdout=log,
            stderr=log,
        )
    if done.returncode:
        raise RuntimeError(f"{directory}: exit {done.returncode}, see log.txt")


def read_curve(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Evaluations of a run by metric, with `step` and `minutes` of training."""
    curve: dict[str, list[float]] = {}
    seconds = 0.0
    step = 0
    for entry in run_logs.lines(directory):
        if "timing/step_seconds" in entry:
            seconds += entry["timing/step_seconds"] * (entry["step"] - step)
            step = entry["step"]
        if metrics := run_logs.evaluation(entry):
            metrics |= {"step": entry["step"], "minutes": seconds / 60}
            for key, value in metrics.items():
                curve.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in curve.items()}


def entropy_of_share(share: np.ndarray) -> np.ndarray:
    """Entropy in nats of a binary variable with this probability."""
    return -(share * np.log(share) + (1 - share) * np.log(1 - share))


def draw(curves: dict[str, dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Draws each family's loss minus the unigram entropy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for family in FAMILIES:
        curve = curves[family.name]
        below = curve[family.key] - curve["unigram_entropy"]
        axes[0].plot(curve["step"], below, label=family.name, marker=".")
    axes[0].axhline(0.0, color="0.4", linestyle="--", label="unigram entropy")
    axes[0].set(
        title="Hidden residues, validation split",
        xlabel="step",
        ylabel="loss - unigram entropy, nats",
    )
    axes[0].set_ylim(top=0.04)  # Room for the legend.
    axes[0].legend(loc="upper right", ncols=3, fontsize="small")
    electra = curves["ELECTRA"]
    axes[1].plot(
        electra["step"],
        electra["discriminator_loss"],
        label="discriminator",
        marker=".",
    )
    axes[1].plot(
        electra["step"],
        entropy_of_share(electra["always_original_accuracy"]),
        color="0.4",
        linestyle="--",
        label='always "original", with its probability',
    )
    axes[1].set(title="ELECTRA's discriminator", xlabel="step", ylabel="nats a token")
    axes[1].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Picture {path}")


def main() -> None:
    """Trains all six and prints the table; with --write, records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run_dir", required=True, help="where the runs go")
    parser.add_argument("--report_only", action="store_true", help="runs are there")
    parser.add_argument("--write", action="store_true", help="RESULTS.md, picture")
    options = parser.parse_args()
    run_dir = pathlib.Path(options.run_dir)
    curves = {}
    for family in FAMILIES:
        directory = run_dir / pathlib.Path(family.leaf).stem
        if not options.report_only:
            train(family, directory)
        curves[family.name] = read_curve(directory)
    lines = [
        "| family | predicts | steps | minutes | loss | unigram entropy | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        curve = curves[family.name]
        loss, floor = curve[family.key][-1], curve["unigram_entropy"][-1]
        lines.append(
            f"| {family.name} | {family.predicts} | {curve['step'][-1]} "
            f"| {curve['minutes'][-1]:.1f} | {loss:.4f} | {floor:.4f} "
            f"| {loss - floor:+.4f} |"
        )
    electra = curves["ELECTRA"]
    accuracy = electra["discriminator_accuracy"][-1]
    share = electra["always_original_accuracy"][-1]
    lines += [
        "",
        f"ELECTRA's discriminator is right about {accuracy:.2%} of the tokens; always "
        f'saying "original" is right about {share:.2%}. Its loss is '
        f"{electra['discriminator_loss'][-1]:.4f}; knowing that share alone gives "
        f"{entropy_of_share(share):.4f}.",
    ]
    body = "\n".join(lines)
    print(body)
    if options.write:
        import report

        draw(curves, PICTURE)
        report.replace_section(
            "Six families on the sample",
            f"{body}\n\n![validation curves](../docs/images/{PICTURE.name})\n\n"
            "Whole validation split, at residues that are hidden from the model. "
            f"{report.machine()}.\n\n"
            "`python benchmarks/family_curves.py --run_dir=DIR --write`",
        )
    else:
        draw(curves, run_dir / PICTURE.name)


if __name__ == "__main__":
    main()
