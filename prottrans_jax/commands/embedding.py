"""`prottrans embed`: a FASTA file into a file of vectors."""

import argparse
import dataclasses
import os
import pathlib

from prottrans_jax.commands import console, progress
from prottrans_jax.files import paths
from prottrans_jax.proteins import plurals

_WHEN_STOPPED = "What was computed is kept: the same command goes on from there."


def add_embed(commands) -> None:
    """Adds `prottrans embed`."""
    parser = console.add_command(
        commands, "embed", _embed, "embed the proteins of a FASTA file"
    )
    parser.set_defaults(when_stopped=_WHEN_STOPPED)
    add = parser.add_argument
    add(
        *("-i", "--input"),
        required=True,
        nargs="+",
        action="extend",
        help="FASTA, plain or compressed; - is stdin; several, or repeated, are one",
    )
    add("-o", "--output", required=True, help=".h5 .npz .parquet .zarr .csv or .tsv")
    add("-m", "--model", default="prot_t5", help="folder, hub id or name")
    add("--per-residue", action="store_true", help="a vector per residue (default)")
    # prott5_embedder's --per_protein takes 0 or 1.
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
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="of the model's products; default: by device",
    )
    add("--output-dtype", choices=("float16", "float32"), help="of the file")
    add(
        "--batch-tokens",
        type=int,
        help="tokens that are computed at once, with padding",
    )
    add("--max-batch", type=int, help="proteins that are computed at once")
    add(
        "--max-length",
        type=int,
        help="residues above which --long decides; default: what the model takes",
    )
    add("--long", default="error", help="error, skip, chunk or truncate")
    add("--chunk-overlap", type=int, help="residues that pieces share")
    add("--key", default="auto", help="auto, token, header, md5, biotrainer or index")
    add("--on-bad", "--on_bad", default="error", help="error or skip")
    add(
        *("--allow-nucleotides", "--allow_nucleotides"),
        action="store_true",
        help="take a file of A, C, G, T, U and N for one of proteins",
    )
    add("--on-duplicate", default="error", help="error, suffix or first")
    add("--reuse", action="append", default=[], help="HDF5 file to take vectors from")
    add(
        "--resume",
        action=console.Switch,
        default=True,
        help="go on from what a stopped run left and from the output as it is, or "
        "compute everything anew; see --overwrite",
    )
    add("--overwrite", action="store_true", help="replace another run's output")
    add(
        "--commit-seconds",
        type=float,
        default=30.0,
        help="keep what was computed at least this often (default 30)",
    )
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"))
    add("--download", action="store_true", help="fetch a model that is not here")
    add("--revision", help="branch, tag or commit of the model's repository")
    add_vocabulary(add)
    add("--no-progress", action="store_true")
    add("--config", help="YAML or JSON with values for these flags")


def add_vocabulary(add) -> None:
    """Adds the flags that say how residues become ids of the model."""
    add(
        "--vocabulary",
        help="tokenizer's file of a model that lies without one: vocab.txt, "
        "spiece.model, tokenizer.json; or prot_t5, prot_bert for theirs",
    )
    add(
        "--prefix",
        help="piece before each protein, as '<AA2fold>' of ProstT5; after '<fold2AA>' "
        "letters are 3Di states",
    )


def _embed(arguments: argparse.Namespace) -> int:
    if arguments.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(
            arguments.device, arguments.device
        )
    from prottrans_jax.embed import job, outputs, process, settings

    # Its fields have the flags' names; devices are for Python alone.
    options = settings.Options(
        **{
            field.name: getattr(arguments, field.name)
            for field in dataclasses.fields(settings.Options)
            if field.name != "devices"
        }
    )
    # Mistakes show before the model is loaded.
    sources = paths.local_inputs(arguments.input, "--input")
    output = paths.local(arguments.output, "--output")
    outputs.refuse_foreign(output, settings.output_paths(output, options).values())
    model = _model(arguments.model)
    from prottrans_jax.encoders import loading

    process.prepare()
    _check_device(arguments.device)
    encoder = loading.load_encoder(
        model,
        dtype=arguments.dtype,
        download=arguments.download,
        revision=arguments.revision,
        vocabulary=arguments.vocabulary,
        prefix=arguments.prefix,
    )
    say = _Say(arguments)
    with progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines:
        report = job.embed_fasta(
            encoder,
            sources,
            output,
            options,
            on_plan=say.plan,
            on_progress=lines.show,
        )
    return say.summary(report)


def _check_device(name: str) -> None:
    import jax

    try:
        jax.devices()
    except Exception as error:  # Which class it is depends on what is installed.
        asked = f"--device {name}"
        if name == "auto":
            asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise ValueError(
            f"{asked}: JAX cannot start that ({str(error) or 'it is not installed'}). "
            "Is prottrans_jax[gpu] or [tpu] installed, and the driver? --device cpu "
            "works everywhere."
        ) from error


def _model(name: str) -> str:
    """The model that was meant."""
    name = paths.source(name, "--model")
    folder = pathlib.Path(name)
    # prott5_embedder's --model is where transformers kept its download of one model.
    if (folder / "models--Rostlab--prot_t5_xl_half_uniref50-enc").is_dir():
        os.environ["HF_HUB_CACHE"] = str(folder)
        return "prot_t5"
    return name


class _Say:
    """Lines for people, on stderr."""

    def __init__(self, arguments: argparse.Namespace):
        self._quiet = arguments.quiet

    def plan(self, plan) -> None:
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
        if not self._quiet:
            self._counts(report)
            for path in report.outputs:
                console.say(f"Wrote {path}")
        if report.letters.only_x:
            names = report.letters.only_x
            console.say(
                f"Warning: {plurals.count(len(names), 'protein')} with no letter but X "
                f"({console.some(names)}): such vectors say nothing."
            )
        if not report.skipped:
            return 0
        reasons: dict[str, list] = {}
        for skipped in report.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped)
        for reason, records in sorted(reasons.items()):
            names = [r.name or (f"line {r.line}" if r.line else "") for r in records]
            shown = f" ({console.some(names)})" if any(names) else ""
            console.say(f"Left out {len(names):,}: {reason}{shown}")
        return 3

    def _counts(self, report) -> None:
        counts = [f"{report.embedded:,} embedded"]
        for number, what in (
            (report.resumed, "from the run before"),
            (report.reused, "reused"),
            (report.kept, "kept from an earlier input, not in this one"),
            (report.dropped, "of an earlier input dropped from the output"),
        ):
            if number:
                counts.append(f"{number:,} {what}")
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
                f"Taken out of sequences: {plurals.count(letters.gaps, 'gap')}, "
                f"{plurals.count(letters.stops, 'stop')} at the end."
            )
        if letters.unusual:
            each = ", ".join(f"{number:,} {x}" for x, number in letters.unusual.items())
            console.say(f"Read as X: {each}.")
        actions: dict[str, list[str]] = {}
        for cut in report.cut:
            actions.setdefault(cut.action, []).append(cut.name)
        for action, names in sorted(actions.items()):
            console.say(
                f"{_cut_to(len(names), action, report.limit)}: {console.some(names)}."
            )


def _cut_to(number: int, action: str, limit: int) -> str:
    how = "truncated to" if action == "truncated" else "embedded in pieces of"
    return f"{plurals.count(number, 'protein')} {how} {plurals.count(limit, 'residue')}"
