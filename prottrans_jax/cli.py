"""Console script `prottrans`: embed proteins, look at models and embedding files.

  prottrans embed -i proteins.fasta -o proteins.h5 -m prot_t5
  prottrans models
  prottrans info proteins.h5

Exit status: 0 done; 2 a mistake in what was asked, or the output is taken; 3 proteins
are missing from the output, or the input cannot be used; 4 anything unforeseen; 130
and 143 stopped by SIGINT and SIGTERM: what was computed is kept, the same command goes
on.
"""

import argparse
from collections.abc import Sequence
import json
import logging as std_logging
import os
import pathlib
import signal
import subprocess
import sys
import time

_KEPT = "What was computed is kept: the same command goes on from there."


class _Stopped(BaseException):
    """SIGTERM; like KeyboardInterrupt nothing but the outermost frame handles it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2

    def stop(*_):
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail(130, f"stopped. {_KEPT}")
    except _Stopped:
        return _fail(143, f"stopped by SIGTERM. {_KEPT}")
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _explain(error, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _explain(error: Exception, arguments: argparse.Namespace) -> int:
    """Prints what went wrong in one line, if it is of a kind that was foreseen."""
    from prottrans_jax import fasta
    from prottrans_jax.embed import job, shards

    if isinstance(error, fasta.FastaError):
        hint = (
            "" if error.problem.fatal else " (--on-bad skip leaves such records out.)"
        )
        return _fail(3, f"{error}{hint}")
    if isinstance(error, shards.LockedError | shards.OtherRunError):
        return _fail(2, str(error))
    if isinstance(error, job.DiskFullError):
        return _fail(4, error.strerror or str(error))
    if isinstance(error, FileNotFoundError | FileExistsError):
        return _fail(2, str(error) if error.errno is None else _of_os(error))
    if isinstance(error, ValueError):
        return _fail(2, str(error))
    if isinstance(error, OSError):
        return _fail(4, _of_os(error))
    if arguments.verbose:
        raise error
    return _fail(4, f"{type(error).__name__}: {error} (-v shows where.)")


def _of_os(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _fail(status: int, why: str) -> int:
    print(f"prottrans: {why}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from prottrans_jax import __version__

    parser = argparse.ArgumentParser(
        prog="prottrans",
        description="ProtTrans protein language models.",
        epilog="Exit status: 0 done; 2 wrong use; 3 proteins missing; 4 unforeseen.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="command")
    _add_embed(commands)
    _add_models(commands)
    _add_info(commands)
    _add_convert(commands)
    _add_verify(commands)
    _add_export(commands)
    return parser


def _command(commands, name: str, run, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only")
    return parser


# ------------------------------------------------------------------------------ embed


def _add_embed(commands) -> None:
    parser = _command(commands, "embed", _embed, "embed the proteins of a FASTA file")
    add = parser.add_argument
    add("-i", "--input", required=True, help="FASTA, plain or compressed; - is stdin")
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
    add("--pool", default="mean", help="mean, max or cls, for --per-protein")
    add(
        "--layer",
        "--layers",
        dest="layers",
        default="-1",
        help="-1, 0,5,-1, last4, all",
    )
    add("--dtype", help="float32 or bfloat16, of the model; default: by device")
    add("--output-dtype", choices=("float16", "float32"), help="of the file")
    add("--batch-tokens", type=int, help="padded tokens that are computed at once")
    add("--max-batch", type=int, help="proteins that are computed at once")
    add("--max-length", type=int, help="residues above which --long decides")
    add("--long", default="error", help="error, skip, chunk or truncate")
    add("--chunk-overlap", type=int, help="residues that pieces share")
    add("--key", default="auto", help="auto, token, header, md5, biotrainer or index")
    add("--on-bad", "--on_bad", default="error", help="error or skip")
    add("--on-duplicate", default="error", help="error, suffix or first")
    add("--reuse", action="append", default=[], help="HDF5 file to take vectors from")
    add("--resume", action=argparse.BooleanOptionalAction, default=True)
    add("--overwrite", action="store_true", help="replace another run's output")
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"))
    add("--download", action="store_true", help="fetch a model that is not here")
    add("--no-progress", action="store_true")


def _embed(arguments: argparse.Namespace) -> int:
    if arguments.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(
            arguments.device, arguments.device
        )
    from prottrans_jax.embed import job, settings

    options = settings.Options(
        per_residue=arguments.per_residue,
        per_protein=bool(arguments.per_protein),
        pool=arguments.pool,
        layers=arguments.layers,
        key=arguments.key,
        residue_dtype=arguments.output_dtype,
        protein_dtype=arguments.output_dtype,
        max_length=arguments.max_length,
        long=arguments.long,
        chunk_overlap=arguments.chunk_overlap,
        on_bad=arguments.on_bad,
        on_duplicate=arguments.on_duplicate,
        max_tokens=arguments.batch_tokens,
        max_rows=arguments.max_batch,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        reuse=tuple(arguments.reuse),
    )
    # A wrong ending shows before the model is loaded.
    settings.output_paths(arguments.output, options)
    from prottrans_jax import encoders

    _keep_programs()
    std_logging.getLogger("absl").setLevel(
        std_logging.ERROR if arguments.quiet else std_logging.WARNING
    )
    encoder = encoders.load_encoder(
        arguments.model, dtype=arguments.dtype, download=arguments.download
    )
    say = _Say(arguments)
    report = job.embed_fasta(
        encoder,
        arguments.input,
        arguments.output,
        options,
        on_plan=say.plan,
        on_progress=say.progress,
    )
    return say.summary(report)


def _keep_programs() -> None:
    """Compiled programs are kept on disk: the next start need not compile."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(home, "prottrans_jax", "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


class _Say:
    """Lines for people, on stderr."""

    def __init__(self, arguments: argparse.Namespace):
        self._quiet = arguments.quiet
        self._progress = not (arguments.no_progress or arguments.quiet)
        self._live = sys.stderr.isatty()
        self._next = 0.0

    def plan(self, plan) -> None:
        if self._quiet:
            return
        self._print(
            f"{plan.proteins:,} proteins, {plan.residues:,} residues, longest "
            f"{plan.longest:,} ({plan.longest_id}); {plan.to_compute:,} to compute. "
            f"About {_gib(plan.output_bytes)} to write, {_gib(plan.needed_bytes)} "
            f"while merging; {_gib(plan.free_bytes)} free."
        )
        if plan.needed_bytes > plan.free_bytes:
            self._print("Warning: that may not fit on this disk.")

    def progress(self, progress) -> None:
        now = time.monotonic()
        done = progress.residues >= progress.of_residues
        if not self._progress or (now < self._next and not (done and self._live)):
            return
        self._next = now + (0.2 if self._live else 30.0)
        rate = progress.residues / max(progress.seconds, 1e-9)
        left = (progress.of_residues - progress.residues) / max(rate, 1e-9)
        line = (
            f"{progress.proteins:,}/{progress.of_proteins:,} proteins, "
            f"{100 * progress.residues / max(progress.of_residues, 1):.1f} % of "
            f"residues, {rate:,.0f} residues/s, {_duration(left)} left"
        )
        if self._live:
            print(
                f"\r\033[K{line}", end="\n" if done else "", file=sys.stderr, flush=True
            )
        else:
            self._print(line)

    def summary(self, report) -> int:
        if not self._quiet:
            counts = [f"{report.embedded:,} embedded"]
            for number, what in (
                (report.resumed, "from the run before"),
                (report.reused, "reused"),
                (report.kept, "of the file as it was kept"),
                (report.repeated, "repeated records written once"),
            ):
                if number:
                    counts.append(f"{number:,} {what}")
            self._print(", ".join(counts) + ".")
            if report.embedded:
                self._print(
                    f"{report.residues_per_second:,.0f} residues/s over "
                    f"{_duration(report.seconds)}, {100 * report.padding:.1f} % "
                    f"padding, peak memory {_gib(report.peak_memory_bytes)}."
                )
            for path in report.outputs:
                self._print(f"Wrote {path}")
        if not report.skipped:
            return 0
        reasons: dict[str, list[str]] = {}
        for skipped in report.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped.name)
        for reason, names in sorted(reasons.items()):
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            self._print(f"Left out {len(names):,}: {reason} ({shown})")
        return 3

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _gib(size: int) -> str:
    if size < 1 << 30:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / (1 << 30):.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


# ------------------------------------------------------------------------------ models


def _add_models(commands) -> None:
    parser = _command(commands, "models", _models, "list the models known by name")
    parser.add_argument("--json", action="store_true", help="for programs")


def _models(arguments: argparse.Namespace) -> int:
    from prottrans_jax import encoders
    from prottrans_jax.interop import huggingface

    rows = []
    for name, repository in encoders.NAMES.items():
        try:
            here = str(huggingface.find(repository))
        except FileNotFoundError:
            here = ""
        rows.append({"name": name, "repository": repository, "folder": here})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        state = row["folder"] or "not here; --download fetches it"
        print(f"{row['name']:{width}}  {row['repository']:42}  {state}")
    print("Folders of prottrans_jax.export and of Hugging Face work as well.")
    return 0


# -------------------------------------------------------------------------------- info


def _add_info(commands) -> None:
    parser = _command(
        commands, "info", _info, "say what is in an embedding file or a model folder"
    )
    parser.add_argument("path", help="embedding file, or folder of a model")
    parser.add_argument("--json", action="store_true", help="for programs")


def _info(arguments: argparse.Namespace) -> int:
    path = pathlib.Path(arguments.path)
    if (path / "config.json").is_file():
        about = _info_of_model(path)
    else:
        from prottrans_jax.embed import files

        found = files.describe(path)
        about = {
            "file": str(path),
            "proteins": found.proteins,
            "vectors": found.kind,
            "d_model": list(found.d_model),
            "dtype": list(found.dtypes),
            "residues": found.residues,
            "examples": list(found.examples),
        } | {key: value for key, value in found.metadata.items() if key != "options"}
    if arguments.json:
        print(json.dumps(about, indent=1, default=str))
        return 0
    for key, value in about.items():
        print(f"{key:20} {value}")
    return 0


def _info_of_model(path: pathlib.Path) -> dict[str, object]:
    import jax

    from prottrans_jax.interop import huggingface

    found = huggingface.read(path)
    provenance = path / "provenance.json"
    about = {
        "folder": str(path),
        "family": found.family.name,
        "parameters": sum(x.size for x in jax.tree.leaves(found.params)),
        "stored": found.stored_dtype.name,
        "config": found.config,
    }
    if provenance.is_file():
        content = json.loads(provenance.read_text(encoding="utf-8"))
        about |= {key: content.get(key) for key in ("exported_from", "step", "created")}
    return about


# ----------------------------------------------------------------------------- convert


def _add_convert(commands) -> None:
    parser = _command(
        commands, "convert", _convert, "write an embedding file in another format"
    )
    parser.add_argument("input", help=".h5 .npz .parquet or .zarr")
    parser.add_argument("output", help=".h5 .npz .parquet .zarr, or .csv per protein")
    parser.add_argument("--pool", help="mean or max: one vector per protein")


def _convert(arguments: argparse.Namespace) -> int:
    from prottrans_jax.embed import files, pooling

    pool = pooling.check(arguments.pool, has_cls=False)

    def transform(array):
        return array if array.ndim == 1 else pooling.pool_protein(array, pool)

    number = files.convert(
        arguments.input, arguments.output, transform=transform if pool else None
    )
    print(f"Wrote {number:,} proteins to {arguments.output}", file=sys.stderr)
    return 0


# ------------------------------------------------------------------------------ verify


def _add_verify(commands) -> None:
    parser = _command(
        commands,
        "verify",
        _verify,
        "check an embedding file, or a model against vectors known to be right",
    )
    add = parser.add_argument
    add("file", nargs="?", help="embedding file to read in full")
    add("-i", "--input", help="FASTA: the file must hold all of it; or, with --golden")
    add("-m", "--model", help="model to check")
    add("--golden", help=".npz or .h5 with the vectors that the model should give")
    add("--dtype", default="float32", help="float32 or bfloat16, of the model")
    add("--key", default="auto", help="how keys were made, as for embed")


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.model and arguments.golden and arguments.input:
        return _verify_model(arguments)
    if not arguments.file or arguments.model or arguments.golden:
        return _fail(2, "give a FILE, or -m MODEL, --golden FILE and -i FASTA.")
    from prottrans_jax.embed import files, verifying

    wanted = None
    if arguments.input:
        wanted = verifying.expected(arguments.input, arguments.key)
    faults = verifying.check_file(arguments.file, wanted)
    for fault in faults[:20]:
        print(fault)
    if faults:
        return _fail(3, f"{arguments.file}: {len(faults)} faults.")
    found = files.describe(arguments.file)
    print(f"{arguments.file}: {found.proteins:,} proteins, {found.kind}, sound.")
    return 0


def _verify_model(arguments: argparse.Namespace) -> int:
    from prottrans_jax import encoders
    from prottrans_jax.embed import verifying

    encoder = encoders.load_encoder(arguments.model, dtype=arguments.dtype)
    results = verifying.compare(encoder, arguments.golden, arguments.input)
    for result in results:
        print(
            f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: largest difference "
            f"{result.largest:.2e}, least cosine {result.cosine:.6f}"
        )
    failed = sum(not result.passed for result in results)
    if failed or not results:
        return _fail(3, f"{failed} of {len(results)} proteins differ.")
    return 0


# ------------------------------------------------------------------------------ export


def _add_export(commands) -> None:
    parser = _command(
        commands, "export", _export, "as `python -m prottrans_jax.export`; see there"
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--part", choices=("encoder", "all"), default="encoder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--stablehlo", action="store_true")


def _export(arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "prottrans_jax.export"]
    command += [
        f"--checkpoint={arguments.checkpoint}",
        f"--output={arguments.output}",
        f"--part={arguments.part}",
    ]
    command += [f"--dtype={arguments.dtype}"] * bool(arguments.dtype)
    command += ["--stablehlo"] * arguments.stablehlo
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
