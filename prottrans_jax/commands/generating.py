"""`prottrans generate`: writes new proteins."""

import argparse
import dataclasses
from typing import Any

from prottrans_jax.commands import console, embedding
from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import ownership, paths
from prottrans_jax.proteins import plurals

_DESCRIPTION = """
Generates proteins. XLNet and Transformer-XL continue --prompt, or each protein of
--input. T5 fills residues that are X in its input, and those after it up to --length.
"""
# Name of the proteins from --prompt.
_NAME = "generated"


def add_generate(commands) -> None:
    """Adds `prottrans generate`."""
    parser = console.add_command(
        commands, "generate", _generate, "generate proteins from a prompt or masks"
    )
    parser.description = _DESCRIPTION
    parser.set_defaults(when_stopped=stop_signals.NOTHING_IS_LEFT)
    add = parser.add_argument
    add("-o", "--output", required=True, help=".fasta .fa .faa or .jsonl")
    add(
        *("-m", "--model"),
        required=True,
        help="T5 with decoder, XLNet or Transformer-XL: folder, run, repository, name",
    )
    add("--prompt", help="residues to begin with; for T5, X is a masked residue")
    add(
        *("-i", "--input"),
        nargs="+",
        action="extend",
        help="FASTA of proteins to begin with, instead of --prompt; - is stdin",
    )
    add("-n", "--number", type=int, default=1, help="proteins for each prompt")
    add(
        "--length",
        type=int,
        help="maximum length in residues, prompt included; default: 256, for T5 the "
        "length of the input",
    )
    add("--min-length", type=int, help="minimum length; default: 1, for T5 --length")
    add(
        "--rewrite",
        action="store_true",
        help="T5: sample all residues, also those that the input gives",
    )
    add("--greedy", action="store_true", help="take the most probable residue")
    add("--temperature", type=float, default=1.0, help="divides the logits (default 1)")
    add("--top-k", type=int, help="sample from the K most probable residues")
    add("--top-p", type=float, help="sample from the most probable share (nucleus)")
    add("--max-run", type=int, help="longest run of one residue")
    add(
        "--no-repeat-ngram",
        type=int,
        help="length of stretches that must not occur twice in a protein",
    )
    add(
        "--allow",
        default="",
        help="letters besides the 20 amino acids that may be sampled, such as XU",
    )
    add("--seed", type=int, default=0, help="the same seed gives the same proteins")
    add("--batch-size", type=int, default=16, help="proteins generated together")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="type of weights and products; default: depends on the device",
    )
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--download", action="store_true", help="fetch a model that is not cached")
    embedding.add_pins(add)
    add("--vocabulary", help="as for `prottrans embed`")
    add("--config", help="YAML or JSON with values for these flags")


def _generate(arguments: argparse.Namespace) -> int:
    from prottrans_jax.embed import process
    from prottrans_jax.generation import generated_files, generator, sampling

    # Report mistakes before the model is loaded. Fields have the flags' names.
    choice = sampling.Sampling(**_values(arguments, sampling.Sampling))
    options = generator.Options(
        **_values(arguments, generator.Options, but=("choice",)), choice=choice
    )
    output = paths.place(arguments.output, "--output")
    ownership.refuse_same(arguments.input or (), [output])
    generated_files.check(output, overwrite=arguments.overwrite)
    starts = _prompts(arguments)
    process.prepare()
    from prottrans_jax.encoders import loading

    model = loading.load_model(
        paths.source(arguments.model, "--model"),
        dtype=arguments.dtype,
        download=arguments.download,
        revision=arguments.revision,
        sha256=arguments.sha256,
        vocabulary=arguments.vocabulary,
    )
    proteins = generator.generate(
        model, starts, options, on_progress=_show(arguments.quiet)
    )
    settings = {"model": model.name, **_settings(options)}
    generated_files.write(output, proteins, settings)
    if not arguments.quiet:
        residues = sum(len(protein.sequence) for protein in proteins)
        console.say(
            f"Wrote {plurals.count(len(proteins), 'protein')} with "
            f"{plurals.count(residues, 'residue')} to {output}"
        )
    return 0


def _values(
    arguments: argparse.Namespace, options: type, but: tuple[str, ...] = ()
) -> dict[str, Any]:
    fields: Any = dataclasses.fields(options)
    return {x.name: getattr(arguments, x.name) for x in fields if x.name not in but}


def _prompts(arguments: argparse.Namespace):
    from prottrans_jax.generation import prompts
    from prottrans_jax.proteins import fasta, vocabulary

    if (arguments.prompt is None) == (arguments.input is None):
        raise ValueError("Give one of --prompt and --input; --prompt '' for no prompt.")
    if arguments.input is None:
        text = arguments.prompt.encode("latin-1", errors="replace")
        residues = vocabulary.clean(text).residues.decode("latin-1")
        if residues and not residues.isalpha():
            raise ValueError(
                f"--prompt={arguments.prompt!r}: letters only, one for each residue. "
                "--input reads files."
            )
        return [prompts.Prompt(_NAME, residues)]
    found: dict[str, prompts.Prompt] = {}
    for record in fasta.read(paths.input_files(arguments.input, "--input")):
        name = record.name.decode()
        if name in found:
            raise ValueError(
                f"--input: there are two proteins with the id {name}. Rename one."
            )
        found[name] = prompts.Prompt(name, record.residues.decode())
    return list(found.values())


def _settings(options: Any) -> dict[str, Any]:
    """Settings that are not at their defaults, and the seed."""
    shown = {"seed": options.seed}
    for part in (options, options.choice):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            is_shown = value != field.default and field.name not in ("choice", "seed")
            if is_shown and field.name not in ("batch_size", "number"):
                shown[field.name] = value
    return shown


def _show(quiet: bool):
    def show(done: int, total: int) -> None:
        if not quiet and done < total:
            console.say(f"{done:,} of {plurals.count(total, 'protein')}")

    return show
