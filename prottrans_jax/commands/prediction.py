"""`prottrans predict`: labels of the proteins of a FASTA file, from a trained head."""

import argparse
import pathlib
import tempfile

from prottrans_jax.commands import console, embedding, progress
from prottrans_jax.files import paths

_WHEN_STOPPED = "Computed predictions are kept: the same command continues from there."


def add_predict(commands) -> None:
    """Adds `prottrans predict`."""
    parser = console.add_command(
        commands, "predict", _predict, "predict labels of the proteins of a FASTA file"
    )
    parser.set_defaults(when_stopped=_WHEN_STOPPED)
    add = parser.add_argument
    embedding.add_input(add)
    add("-o", "--output", required=True, help=".tsv .jsonl .fasta or .h5")
    add(
        "--head",
        required=True,
        help="folder of a run of prottrans finetune, or a published head of "
        "TMbed, ProstT5 or bio_embeddings",
    )
    add(
        *("-m", "--model"),
        help="the model that the head was trained on; default: where it was then",
    )
    add("--format", help="tsv, jsonl, fasta or h5; default: by the suffix")
    embedding.add_job(add)


def _predict(arguments: argparse.Namespace) -> int:
    embedding.choose_device(arguments)
    from prottrans_jax.downstream import (
        predicting,
        prediction_files,
        published_heads,
    )
    from prottrans_jax.embed import inputs

    options = embedding.job_options(arguments)
    # Report mistakes before the model is loaded.
    sources = paths.input_files(arguments.input, "--input")
    output = paths.place(arguments.output, "--output")
    head = published_heads.load(arguments.head)
    prediction_files.format_of(output, arguments.format, head.tasks)
    if arguments.model is None:
        arguments.model = head.encoder.source
    if arguments.prefix is None and head.encoder.prefix:
        arguments.prefix = head.encoder.prefix
    encoder = embedding.load_encoder(arguments)
    messages = embedding.Messages(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines,
    ):
        # Standard input is read twice: by the job, and for the text.
        read_twice = [
            inputs.spool(None, pathlib.Path(folder))
            if source == paths.STANDARD_INPUT
            else source
            for source in sources
        ]
        report = predicting.predict(
            encoder,
            head,
            read_twice,
            output,
            options,
            format=arguments.format,
            on_plan=messages.plan,
            on_progress=lines.show,
        )
    return messages.summary(report)
