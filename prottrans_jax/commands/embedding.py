"""`prottrans embed`: writes embeddings of a FASTA file's proteins."""

import argparse
import dataclasses
import os
import pathlib

from prottrans_jax.commands import console, progress
from prottrans_jax.files import paths
from prottrans_jax.proteins import plurals

_WHEN_STOPPED = "Computed vectors are kept: the same command continues from there."


def add_embed(commands) -> None:
    """Adds `prottrans embed`."""
    parser = console.add_command(
        commands, "embed", _embed, "embed the proteins of a FASTA file"
    )
    parser.set_defaults(when_stopped=_WHEN_STOPPED)
    add = parser.add_argument
    add_input(add)
    add("-o", "--output", required=True, help=".h5 .npz .parquet .zarr .csv or .tsv")
    add("-m", "--model", default="prot_t5", help="folder, hub repository or name")
    add("--per-residue", action="store_true", help="a vector per residue (default)")
    # With 0 or 1 for compatibility with prott5_embedder.
    add(
        *("--per-protein", "--per_protein"),
        nargs="?",
        const=1,
        default=0,
        type=int,
        choices=(0, 1),
        help="one vector per protein",
    )
    add("--pool", help="mean (default), max or cls, for --per-protein")
    add(
        "--layer",
        "--layers",
        dest="layers",
        default="-1",
        help="-1, 0,5,-1, last4, all",
    )
    add("--output-dtype", choices=("float16", "float32"), help="type in the file")
    add("--reuse", action="append", default=[], help="HDF5 file with vectors to reuse")
    add_job(add)


def add_input(add) -> None:
    """Adds --input."""
    add(
        *("-i", "--input"),
        required=True,
        nargs="+",
        action="extend",
        help="FASTA, plain or compressed; - is stdin; several files are read as one",
    )


def add_job(add) -> None:
    """Adds the flags of a job over the proteins of FASTA files, and of its model."""
    add(
        "--batch-tokens",
        type=int,
        help="maximum tokens in a batch, including padding",
    )
    add("--max-batch", type=int, help="maximum proteins in a batch")
    add(
        "--max-length",
        type=int,
        help="residues above which --long applies; default: the model's limit",
    )
    add("--long", default="error", help="error, skip, chunk or truncate")
    add("--chunk-overlap", type=int, help="residues that neighbouring pieces share")
    add("--key", default="auto", help="auto, token, header, md5, biotrainer or index")
    add("--on-bad", "--on_bad", default="error", help="error or skip")
    add(
        *("--allow-nucleotides", "--allow_nucleotides"),
        action="store_true",
        help="accept a file with only A, C, G, T, U and N as proteins",
    )
    add("--on-duplicate", default="error", help="error, suffix or first")
    add(
        "--resume",
        action=console.Switch,
        default=True,
        help="continue a stopped run and keep vectors in the output, or compute "
        "everything anew; see --overwrite",
    )
    add("--overwrite", action="store_true", help="replace another run's output")
    add(
        "--commit-seconds",
        type=float,
        default=30.0,
        help="save computed vectors at least this often (default 30)",
    )
    add_model(add)
    add("--no-progress", action="store_true")
    add("--config", help="YAML or JSON with values for these flags")


def add_model(add) -> None:
    """Adds the flags that say how a model is loaded, besides --model."""
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="type of weights and products; default: depends on the device",
    )
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"))
    add("--download", action="store_true", help="fetch a model that is not cached")
    add_pins(add)
    add_vocabulary(add)


def add_pins(add) -> None:
    """Adds --revision and --sha256, which say exactly which weights are meant."""
    add("--revision", help="branch, tag or commit of the model's repository")
    add("--sha256", help="SHA-256 of the weights, which are refused if it differs")


def add_vocabulary(add) -> None:
    """Adds the flags that determine the model's ids of residues."""
    add(
        "--vocabulary",
        help="tokenizer file for a model without one: vocab.txt, spiece.model or "
        "tokenizer.json; or prot_t5 or prot_bert for the vocabulary of these models",
    )
    add(
        "--prefix",
        help="piece before each protein, such as '<AA2fold>' of ProstT5; after "
        "'<fold2AA>' letters are 3Di states",
    )


def _embed(arguments: argparse.Namespace) -> int:
    choose_device(arguments)
    from prottrans_jax.embed import job, outputs, settings

    options = job_options(arguments)
    # Report mistakes before the model is loaded.
    sources = paths.input_files(arguments.input, "--input")
    output = paths.place(arguments.output, "--output")
    outputs.refuse_foreign(output, settings.output_paths(output, options).values())
    encoder = load_encoder(arguments)
    messages = Messages(arguments)
    with progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines:
        report = job.embed_fasta(
            encoder,
            sources,
            output,
            options,
            on_plan=messages.plan,
            on_progress=lines.show,
        )
    return messages.summary(report)


def choose_device(arguments: argparse.Namespace) -> None:
    """Applies --device; call it before jax is imported."""
    if arguments.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(
            arguments.device, arguments.device
        )


def job_options(arguments: argparse.Namespace):
    """Options of the job from the flags of the same names; others have defaults."""
    from prottrans_jax.embed import settings

    return settings.Options(
        **{
            field.name: getattr(arguments, field.name)
            for field in dataclasses.fields(settings.Options)
            if hasattr(arguments, field.name)
        }
    )


def load_encoder(arguments: argparse.Namespace):
    """Starts the device and loads the encoder of --model.

    Raises:
      ValueError: The device cannot be started, or the model cannot be used.
      FileNotFoundError: There is no such model.
    """
    from prottrans_jax.embed import process
    from prottrans_jax.encoders import loading

    model = model_source(arguments.model)
    process.prepare()
    check_device(arguments.device)
    return loading.load_encoder(
        model,
        dtype=arguments.dtype,
        download=arguments.download,
        revision=arguments.revision,
        sha256=arguments.sha256,
        vocabulary=arguments.vocabulary,
        prefix=arguments.prefix,
    )


def check_device(name: str) -> None:
    """Raises ValueError if JAX cannot start the device of --device."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # The class depends on the installed plugins.
        setting = f"--device {name}"
        if name == "auto":
            setting = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise ValueError(
            f"{setting}: JAX cannot start this device "
            f"({str(error) or 'it is not installed'}). Are prottrans_jax[gpu] or "
            "[tpu] and the driver installed? --device cpu works everywhere."
        ) from error


def model_source(name: str) -> str:
    """The value of --model; also accepts the folder of prott5_embedder."""
    name = paths.source(name, "--model")
    folder = pathlib.Path(name)
    # prott5_embedder's --model is a cache folder with one model.
    if (folder / "models--Rostlab--prot_t5_xl_half_uniref50-enc").is_dir():
        os.environ["HF_HUB_CACHE"] = str(folder)
        return "prot_t5"
    return name


class Messages:
    """Prints the plan and the summary of a job on stderr."""

    def __init__(self, arguments: argparse.Namespace):
        self._quiet = arguments.quiet

    def plan(self, plan) -> None:
        """Prints what will be computed."""
        if self._quiet:
            return
        residues = plurals.count(plan.residues, "residue")
        longest = f", longest {plan.longest:,} ({plan.longest_id})"
        console.say(
            f"{plurals.count(plan.proteins, 'protein')}, {residues}"
            f"{longest if plan.proteins else ''}; {plan.to_compute:,} to compute. "
            f"About {console.gib(plan.output_bytes)} to write, "
            f"{console.gib(plan.needed_bytes)} while merging; "
            f"{console.gib(plan.free_bytes)} free."
        )
        for reason, number in sorted(plan.left_out.items()):
            console.say(
                f"{plurals.count(number, 'record')} will be left out: {reason}."
            )
        for action, number in sorted(plan.cut.items()):
            console.say(f"{_cut_to(number, action, plan.limit)}.")
        if plan.needed_bytes > plan.free_bytes:
            console.say("Warning: that may not fit on this disk.")

    def summary(self, report) -> int:
        """Prints what was done and left out; returns the exit status."""
        if not self._quiet:
            self._counts(report)
            for path in report.outputs:
                console.say(f"Wrote {path}")
        if report.letters.only_x:
            names = report.letters.only_x
            console.say(
                f"Warning: {plurals.count(len(names), 'protein')} with no letter but X "
                f"({console.some(names)}): their vectors carry no information."
            )
        return say_left_out(report.skipped)

    def _counts(self, report) -> None:
        counts = [f"{report.embedded:,} embedded"]
        for number, origin in (
            (report.resumed, "from the run before"),
            (report.reused, "reused"),
            (report.kept, "kept from an earlier input, not in this one"),
            (report.dropped, "of an earlier input dropped from the output"),
        ):
            if number:
                counts.append(f"{number:,} {origin}")
        if report.repeated:
            counts.append(
                f"{plurals.count(report.repeated, 'repeated record')} written once"
            )
        console.say(", ".join(counts) + ".")
        if report.embedded:
            console.say(
                f"{report.residues_per_second:,.0f} residues/s over "
                f"{console.duration(report.seconds)}, {100 * report.padding:.1f} % "
                f"padding, peak memory {console.gib(report.peak_memory_bytes)}."
            )
        letters = report.letters
        if letters.gaps or letters.stops:
            console.say(
                f"Removed from sequences: {plurals.count(letters.gaps, 'gap')}, "
                f"{plurals.count(letters.stops, 'stop')} at the end."
            )
        if letters.unusual:
            counts_of_letters = ", ".join(
                f"{number:,} {letter}" for letter, number in letters.unusual.items()
            )
            console.say(f"Read as X: {counts_of_letters}.")
        actions: dict[str, list[str]] = {}
        for cut in report.cut:
            actions.setdefault(cut.action, []).append(cut.name)
        for action, names in sorted(actions.items()):
            console.say(
                f"{_cut_to(len(names), action, report.limit)}: {console.some(names)}."
            )


def say_left_out(skipped) -> int:
    """Names the records that were left out; returns the exit status, 3 if any."""
    reasons: dict[str, list] = {}
    for record in skipped:
        reasons.setdefault(record.reason, []).append(record)
    for reason, records in sorted(reasons.items()):
        names = [r.name or (f"line {r.line}" if r.line else "") for r in records]
        shown = f" ({console.some(names)})" if any(names) else ""
        console.say(f"Left out {len(names):,}: {reason}{shown}")
    return 3 if skipped else 0


def _cut_to(number: int, action: str, limit: int) -> str:
    verb = "truncated to" if action == "truncated" else "embedded in pieces of"
    return (
        f"{plurals.count(number, 'protein')} {verb} {plurals.count(limit, 'residue')}"
    )
