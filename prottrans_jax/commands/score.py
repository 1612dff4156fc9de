"""`prottrans score`: likelihoods of proteins and of their variants."""

import argparse
from collections.abc import Sequence
import math
import os

from prottrans_jax.commands import console, embedding, progress
from prottrans_jax.files import ownership, paths
from prottrans_jax.proteins import plurals

_MODES = ("pseudo_perplexity", "logits", "variants", "all_substitutions", "infill")


def add_score(commands) -> None:
    """Adds `prottrans score`."""
    parser = console.add_command(
        commands, "score", _score, "score proteins and their variants"
    )
    add = parser.add_argument
    add_input(add)
    add("-o", "--output", required=True, help=".csv .tsv .jsonl, for arrays .npz .h5")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--pseudo-perplexity",
        action="store_true",
        help="likelihood of each protein, one residue masked at a time (default)",
    )
    modes.add_argument(
        "--logits", action="store_true", help="logits of every piece at every residue"
    )
    modes.add_argument(
        "--variants",
        nargs="+",
        action="extend",
        metavar="CSV",
        help="score the variants of ProteinGym's files: column mutant, A1C or A1C:D2E",
    )
    modes.add_argument(
        "--all-substitutions", action="store_true", help="all 19 for each residue"
    )
    modes.add_argument(
        "--infill",
        action="store_true",
        help="most probable residues for each X, ?, _ and <mask> of the FASTA",
    )
    add(
        "--one-pass",
        action="store_true",
        help="with --pseudo-perplexity: an estimate from one pass without masks",
    )
    add(
        "--marginals",
        choices=("masked", "wild-type", "mutant"),
        help="with variants and substitutions: log odds with the residue masked, from "
        "one pass over the wild type, or from reading each variant",
    )
    add("--matrix", action="store_true", help="substitutions as a row per residue")
    add("--top", type=int, default=1, help="residues per place with --infill")
    add(
        "--likelihood",
        help="masked, denoising, spans, permutation, left-to-right or replaced; "
        "default: the model's usual one",
    )
    add_policies(add)
    add_run(add)


def add_input(add) -> None:
    """Adds --input and the flags that name a model."""
    add(
        *("-i", "--input"),
        required=True,
        nargs="+",
        action="extend",
        help="FASTA, plain or compressed; - is stdin; several files are read as one",
    )
    add("-m", "--model", required=True, help="folder, hub repository or name")
    embedding.add_pins(add)
    add("--vocabulary", help="tokenizer file for a model without one; see `embed`")
    add("--download", action="store_true", help="fetch a model that is not cached")


def add_policies(add) -> None:
    """Adds the flags for records that cannot be used, and existing outputs."""
    add("--on-bad", default="error", choices=("error", "skip"))
    add("--on-duplicate", default="error", choices=("error", "suffix", "first"))
    add(
        "--long",
        default="error",
        choices=("error", "skip"),
        help="for proteins longer than the model has positions for",
    )
    add("--allow-nucleotides", action="store_true", help="see `embed`")
    add("--overwrite", action="store_true", help="replace an existing output")


def add_run(add) -> None:
    """Adds the flags that say how to compute."""
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="type of weights and products; default: depends on the device",
    )
    add("--batch-tokens", type=int, help="maximum tokens in a batch, with padding")
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"))
    add("--no-progress", action="store_true")
    add("--config", help="YAML or JSON with values for these flags")


def _score(arguments: argparse.Namespace) -> int:
    chosen = [mode for mode in _MODES if getattr(arguments, mode)]
    mode = chosen[0] if chosen else _MODES[0]
    _refuse_unused(arguments, mode)
    from prottrans_jax.scoring import proteingym, score_files, score_job, scorers

    # Report mistakes before the model is loaded.
    ownership.refuse_same(arguments.variants or (), [arguments.output])
    assays = proteingym.read_all(arguments.variants or ())
    suffixes = {
        "logits": score_files.ARRAYS,
        "all_substitutions": (*score_files.TABLES, *score_files.ARRAYS),
    }
    model = load_model(arguments, suffixes.get(mode, score_files.TABLES))
    scorer = scorers.Scorer(
        model, arguments.likelihood, max_tokens=arguments.batch_tokens
    )
    with progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines:
        job = score_job.ScoreJob(
            scorer,
            arguments.input,
            arguments.output,
            policies(arguments),
            lines.show,
        )
        if mode == "pseudo_perplexity":
            report = job.pseudo_perplexity(one_pass=arguments.one_pass)
        elif mode == "logits":
            report = job.logits()
        elif mode == "variants":
            report = job.variants(assays, arguments.marginals)
        elif mode == "all_substitutions":
            report = job.substitutions(arguments.marginals, matrix=arguments.matrix)
        else:
            report = job.infill(arguments.top)
    return _summary(report, arguments.quiet)


def _refuse_unused(arguments: argparse.Namespace, mode: str) -> None:
    """Raises ValueError for a flag that the mode does not use."""
    substitutions = ("variants", "all_substitutions")
    for flag, value, users in (
        ("--one-pass", arguments.one_pass, ("pseudo_perplexity",)),
        ("--marginals", arguments.marginals, substitutions),
        ("--matrix", arguments.matrix, ("all_substitutions",)),
        ("--top", arguments.top != 1, ("infill",)),
    ):
        if value and mode not in users:
            names = " or ".join(f"--{x.replace('_', '-')}" for x in users)
            raise ValueError(f"{flag} is for {names}; drop it, or add {names}.")


def policies(arguments: argparse.Namespace):
    """`fasta_job.Options` from the flags."""
    from prottrans_jax.scoring import fasta_job

    return fasta_job.Options(
        on_bad=arguments.on_bad,
        on_duplicate=arguments.on_duplicate,
        long=arguments.long,
        allow_nucleotides=arguments.allow_nucleotides,
        overwrite=arguments.overwrite,
    )


def load_model(arguments: argparse.Namespace, suffixes: Sequence[str]):
    """The `frozen_models.Model` that the flags name.

    Args:
      arguments: Values of the flags; their paths are checked first.
      suffixes: Extensions that the output may have.
    """
    if arguments.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(
            arguments.device, arguments.device
        )
    from prottrans_jax.embed import process
    from prottrans_jax.encoders import loading
    from prottrans_jax.scoring import score_files

    paths.input_files(arguments.input, "--input")
    score_files.check(arguments.output, suffixes, overwrite=arguments.overwrite)
    if arguments.batch_tokens is not None and arguments.batch_tokens < 1:
        raise ValueError(
            f"--batch-tokens={arguments.batch_tokens}: it must be at least 1."
        )
    process.prepare()
    embedding.check_device(arguments.device)
    return loading.load_model(
        paths.source(arguments.model, "--model"),
        dtype=arguments.dtype,
        download=arguments.download,
        revision=arguments.revision,
        sha256=arguments.sha256,
        vocabulary=arguments.vocabulary,
    )


def _summary(report, quiet: bool) -> int:
    """Prints the report of a job and returns the exit status."""
    if not quiet:
        console.say(
            f"{plurals.count(report.proteins, 'protein')}, "
            f"{plurals.count(report.residues, 'residue')} scored in "
            f"{console.duration(report.seconds)}. Wrote {report.output}"
        )
        unusual = ", ".join(
            f"{number:,} {letter}" for letter, number in report.letters.unusual.items()
        )
        if unusual:
            console.say(f"Read as X: {unusual}.")
    for assay, correlation, measured, variants in report.correlations:
        value = "not defined" if math.isnan(correlation) else f"{correlation:.4f}"
        print(
            f"{assay}: Spearman {value} over {measured:,} of "
            f"{plurals.count(variants, 'variant')}"
        )
    return embedding.say_left_out(report.skipped)
