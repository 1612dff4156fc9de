"""Our `autoeval` against biotrainer's AutoEval, on the same vectors and settings.

    python benchmarks/autoeval_vs_biotrainer.py --biotrainer=VENV/bin/python \
        --structures=netsurfp2_train.q3.jsonl.gz --locations=deeploc_train.tsv.gz

Both train the heads of the PBC (CNN for residues, one hidden layer for proteins) on the
same proteins, several seeds each, and print mean and standard deviation of the metrics
on the same test proteins. biotrainer has an environment of its own (Python 3.12 or
newer, `pip install biotrainer==2.1.1 requests`).
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import tempfile

import numpy as np

from prottrans_jax.downstream import autoeval, evaluation_sets, readers
from prottrans_jax.encoders import controls, loading

# Runs in biotrainer's environment: its settings of a PBC data set, with our vectors.
_PEER = """
import json, sys
from biotrainer.autoeval.frameworks.pbc_supervised.pbc_supervised_config_bank import (
    PBCConfigBank)
from biotrainer.training.utilities.executer import parse_config_file_and_execute_run
from biotrainer_core.data_classes.autoeval import AutoEvalTask

dataset, fasta, vectors, output, seed = sys.argv[1:]
task = AutoEvalTask(framework_name="PBC_SUPERVISED", dataset_name=dataset,
                    split_name=None, input_files=[fasta], type="Protein")
bank = PBCConfigBank()
config = bank.add_custom_values_to_config(
    config=bank.get_task_config(task), embedder_name="custom_embeddings",
    embeddings_file=vectors, input_file=fasta, output_dir=output, device="cpu")
config["seed"] = int(seed)
result = parse_config_file_and_execute_run(config=config)
print("RESULT", json.dumps({
    name: test.inference_result.metrics for name, test in result.test_results.items()}))
"""


def write_fasta(proteins, path: pathlib.Path, number: int, seed: int) -> None:
    """Writes proteins in the PBC's form: 6/8 train, 1/8 val, 1/8 test."""
    drawn = np.random.default_rng(seed).permutation(len(proteins))[:number]
    lines = []
    for place, index in enumerate(drawn):
        protein = proteins[index]
        split = ("test", "val", *("train",) * 6)[place % 8]
        header = f">{protein.id.replace(' ', '_')} SET={split} TARGET={protein.target}"
        lines.append(f"{header}{protein.mask}\n{protein.residues}\n")
    path.write_text("".join(lines))


@dataclasses.dataclass(frozen=True)
class _Written:
    id: str
    residues: str
    target: str
    mask: str


def labelled(place: str, task: str, longest: int) -> list[_Written]:
    """Proteins of a file with their labels as the PBC writes them."""
    data = readers.read(place, task=task)
    classes, seen = data.task.classes, set()
    written = []
    for protein in data.proteins:
        # biotrainer refuses equal sequences.
        if len(protein.residues) > longest or protein.residues in seen:
            continue
        seen.add(protein.residues)
        names = [classes[i] for i in np.atleast_1d(protein.labels)]
        mask = ""
        if data.task.level == "residue":
            mask = " MASK=" + "".join(str(int(x)) for x in protein.counts)
        written.append(_Written(protein.id, protein.residues, "".join(names), mask))
    return written


def ours(folder, encoder, evaluation, seeds, data) -> dict[str, list[float]]:
    """Metrics of our heads by name, one of each seed."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        settings = autoeval.Settings(seed=seed)
        run = autoeval.Run(folder, data, settings)
        (result,) = autoeval.evaluate(run, [encoder], [evaluation])
        for name, value in result["tests"][0]["metrics"].items():
            found.setdefault(name, []).append(value["value"])
    return found


def peer(python, folder, dataset, fasta, vectors, seeds) -> dict[str, list[float]]:
    """Metrics of biotrainer's heads by name, one of each seed."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        output = folder / f"biotrainer_{dataset}_{seed}"
        command = [python, "-c", _PEER, dataset, *map(str, (fasta, vectors, output))]
        done = subprocess.run(
            [*command, str(seed)], check=False, capture_output=True, text=True
        )
        lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        if not lines:
            raise SystemExit(f"biotrainer failed:\n{done.stdout}\n{done.stderr}")
        tests = json.loads(lines[-1].removeprefix("RESULT "))
        for name, value in tests["test"].items():
            found.setdefault(name, []).append(value)
    return found


def main() -> None:
    """Prints a line for each data set and metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--biotrainer", required=True, help="its Python")
    parser.add_argument("--structures", required=True, help="labels of residues")
    parser.add_argument("--locations", required=True, help="labels of proteins")
    parser.add_argument("--model", help="default: one-hot residues")
    parser.add_argument("--proteins", type=int, default=800)
    parser.add_argument("--longest", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    encoder = loading.load_encoder(flags.model) if flags.model else controls.one_hot()
    seeds = range(42, 42 + flags.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        for dataset, place, task, metrics in (
            (
                *("secondary_structure", flags.structures, "secondary_structure_3"),
                {"accuracy": "accuracy", "macro_f1": "macro-f1_score"},
            ),
            (
                *("scl", flags.locations, "location"),
                {"accuracy": "accuracy", "balanced_accuracy": "balanced-accuracy"},
            ),
        ):
            folder = root / dataset
            folder.mkdir()
            fasta = folder / f"{dataset}.fasta"
            proteins = labelled(place, task, flags.longest)
            write_fasta(proteins, fasta, flags.proteins, seed=0)
            vectors = folder / "vectors.h5"
            encoder.embed_fasta(
                fasta,
                vectors,
                per_residue=task.startswith("secondary"),
                per_protein=not task.startswith("secondary"),
                key="biotrainer",
                output_dtype="float32",
            )
            evaluation = evaluation_sets.EVALUATIONS[f"pbc_{dataset}"]
            mine = ours(root / f"{dataset}_run", encoder, evaluation, seeds, folder)
            theirs = peer(flags.biotrainer, root, dataset, fasta, vectors, seeds)
            for name, other in metrics.items():
                print(
                    f"{dataset} {name}: ours {_text(mine[name])}, "
                    f"biotrainer {_text(theirs[other])}",
                    flush=True,
                )


def _text(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {spread:.4f} (n = {len(values)})"


if __name__ == "__main__":
    main()
