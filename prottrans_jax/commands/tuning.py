"""`prottrans finetune`: trains a head on a file of labelled proteins."""

import argparse
import os

from prottrans_jax.commands import console, embedding, progress
from prottrans_jax.files import paths

_WHEN_STOPPED = "The run is saved: the same command resumes it."


def add_finetune(commands) -> None:
    """Adds `prottrans finetune`."""
    parser = console.add_command(
        commands, "finetune", _finetune, "train a head on a file of labelled proteins"
    )
    parser.set_defaults(when_stopped=_WHEN_STOPPED)
    add = parser.add_argument
    add(
        "--task",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="labelled proteins: CSV, TSV, JSON Lines or FASTA; several are one set",
    )
    add("--published", metavar="NAME", help="the published task of the labels")
    add("-o", "--output", required=True, metavar="RUN", help="folder of the run")
    add("-m", "--model", default="prot_t5", help="folder, hub repository or name")
    add(
        "--head",
        help="linear, cnn, bilstm, fnn or light_attention; default: cnn for "
        "residues, fnn for proteins",
    )
    add("--epochs", type=int, default=10, help="default %(default)s")
    add("--batch-size", type=int, default=64, help="proteins, default %(default)s")
    add("--learning-rate", type=float, default=1e-3, help="default %(default)s")
    add("--patience", type=int, help="stop after so many epochs without a better one")
    add("--seed", type=int, default=42, help="default %(default)s")
    add("--max-length", type=int, help="truncate longer proteins and their labels")
    add("--vectors", help="file of vectors to share between runs; default: in RUN")
    embedding.add_model(add)
    add("--no-progress", action="store_true")
    add("--config", help="YAML or JSON with values for these flags")


def _finetune(arguments: argparse.Namespace) -> int:
    embedding.choose_device(arguments)
    from prottrans_jax.downstream import finetuning
    from prottrans_jax.optimizers import algorithms

    files = [os.fspath(paths.place(file, "--task")) for file in arguments.task]
    data = finetuning.read(files, arguments.published)
    task, splits = data.task, finetuning.with_splits(data)
    if not arguments.quiet:
        for note in data.notes:
            console.say(note)
        sizes = (f"{name} {len(one.proteins):,}" for name, one in splits.items())
        what = ", ".join(task.classes) if task.classes else "numbers"
        console.say(f"{task.name}, for each {task.level}: {what}")
        console.say(f"Proteins: {', '.join(sizes)}")
    encoder = embedding.load_encoder(arguments)
    with progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines:
        result = finetuning.finetune(
            model_dir=arguments.output,
            data=data,
            model=arguments.model,
            encoder=encoder,
            head=arguments.head or ("cnn" if task.level == "residue" else "fnn"),
            optimizer=algorithms.AdamW(
                learning_rate=arguments.learning_rate, eps=1e-8, weight_decay=0.0
            ),
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            patience=arguments.patience,
            seed=arguments.seed,
            max_length=arguments.max_length,
            vectors=arguments.vectors,
            on_progress=lines.show,
        )
    if result.head is None:
        console.say(_WHEN_STOPPED)
        return result.summary.exit_code
    for line in finetuning.summary_lines(result):
        console.say(line)
    console.say(f"Wrote {result.folder}")
    console.say(
        f"Next: prottrans predict -i proteins.fasta -o predictions.tsv "
        f"-m {arguments.model} --head {arguments.output}"
    )
    return 0
