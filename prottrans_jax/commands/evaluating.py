"""`prottrans autoeval`: tables of published evaluations for a model."""

import argparse
import dataclasses
import sys

from prottrans_jax.commands import console, embedding
from prottrans_jax.files import paths


def add_autoeval(commands) -> None:
    """Adds `prottrans autoeval`."""
    parser = console.add_command(
        commands,
        "autoeval",
        _autoeval,
        "train and test heads on published data: the tables of the paper",
    )
    add = parser.add_argument
    add("-m", "--model", required=True, help="model, as of `prottrans embed`")
    add(
        "--data",
        required=True,
        metavar="FOLDER",
        help="folder with the labelled files; docs/autoeval.md lists their names",
    )
    add(
        "-o",
        "--output",
        required=True,
        metavar="RUN",
        help="folder of the run; the same command continues it",
    )
    add(
        "--tasks",
        default="paper",
        help="evaluations, separated by commas, or the collections paper and pbc "
        "(default: paper)",
    )
    add(
        "--controls",
        action="store_true",
        help="also evaluate one-hot residues and random weights, and compare",
    )
    add(
        "--development",
        action="store_true",
        help="a quick look in minutes: few proteins, short ones, fewer epochs",
    )
    add("--epochs", type=int, help="passes over the training proteins (default: 10)")
    add("--seed", type=int, default=42, help="seed of training (default: 42)")
    embedding.add_model(add)


def _autoeval(arguments: argparse.Namespace) -> int:
    embedding.choose_device(arguments)
    from prottrans_jax.downstream import autoeval, evaluation_sets, evaluation_tables
    from prottrans_jax.encoders import controls
    from prottrans_jax.files import writing

    evaluations = evaluation_sets.choose(
        [name.strip() for name in arguments.tasks.split(",")]
    )
    settings = autoeval.DEVELOPMENT if arguments.development else autoeval.Settings()
    settings = dataclasses.replace(settings, seed=arguments.seed)
    if arguments.epochs is not None:
        settings = dataclasses.replace(settings, epochs=arguments.epochs)
    data = paths.local(arguments.data, "--data")
    if not data.is_dir():  # Before the model is loaded.
        return console.fail(2, f"--data {data}: there is no such folder.")
    run = autoeval.Run(
        paths.local(arguments.output, "--output"),
        data,
        settings,
        tell=(lambda line: None) if arguments.quiet else console.say,
    )
    encoder = embedding.load_encoder(arguments)
    encoders = [encoder]
    if arguments.controls:
        encoders += [controls.random_weights(encoder), controls.one_hot()]
    results = autoeval.evaluate(run, encoders, evaluations)
    table = evaluation_tables.markdown(results, dataclasses.asdict(settings))
    writing.write_synced(run.folder / autoeval.REPORT, table.encode())
    sys.stdout.write(table)
    missing = [r["evaluation"] for r in results if "missing" in r]
    if len(missing) == len(results):
        return console.fail(2, f"no evaluation has data below {run.data}.")
    if missing:
        return console.fail(3, f"left out: {', '.join(missing)}; the table says why.")
    return 0
