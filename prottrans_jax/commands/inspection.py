"""`prottrans info`, `reformat` and `verify`: describe, rewrite and check files."""

import argparse
from collections.abc import Mapping
import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import platform

from prottrans_jax import printable
from prottrans_jax.commands import console, embedding
from prottrans_jax.files import folders, json_text, paths
from prottrans_jax.proteins import plurals


def add_info(commands) -> None:
    """Adds `prottrans info`."""
    parser = console.add_command(
        commands, "info", _info, "describe an embedding file, a model, or this machine"
    )
    parser.add_argument(
        "path",
        nargs="?",
        help="embedding file, or folder of a model; without it, the installation and "
        "the devices: what to paste into a bug report",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    if arguments.path is None:
        about = _info_of_machine()
    else:
        about = _info_of_path(paths.place(arguments.path, "path"))
    if arguments.json:
        print(json.dumps(about, indent=1, default=str))
        return 0
    _print(about)
    return 0


def _info_of_machine() -> dict[str, object]:
    import jax

    import prottrans_jax
    from prottrans_jax.kernels import x86

    packages = ("jax", "jaxlib", "flax", "numpy", "h5py")
    return {
        "prottrans_jax": prottrans_jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in jax.devices()],
        "CPU kernels": x86.route(),
    }


def _info_of_path(path: paths.Place) -> dict[str, object]:
    if (path / "config.json").is_file():
        with folders.local_copy(path) as copy:
            return {"folder": str(path), **_info_of_model(copy)}
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise ValueError(f"{path}: the folder has no config.json, so it is no model.")
    from prottrans_jax.embed import formats

    with formats.local_copy(path) as copy:
        summary = formats.describe(copy)
    about = {
        "file": str(path),
        "proteins": summary.proteins,
        "vectors": summary.kind,
        "d_model": list(summary.d_model),
        "dtype": list(summary.dtypes),
        "residues": summary.residues,
        "examples": list(summary.examples),
    } | {key: value for key, value in summary.metadata.items() if key != "options"}
    if summary.kind == "per protein":
        # The number of residues does not follow from vectors per protein.
        del about["residues"]
    return about


def _print(about: Mapping[str, object], indent: str = "") -> None:
    """Prints names and values, one per line; nested values are indented."""
    for key, value in about.items():
        name = f"{indent}{key}"
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(ValueError):
                value = json_text.parse(value)
        if isinstance(value, Mapping) and value:
            print(printable.plain(name))
            _print(value, indent + "  ")
            continue
        if isinstance(value, list | tuple | Mapping):
            value = ", ".join(map(_shown, value))
        print(printable.plain(f"{name:24} {_shown(value)}"))


def _shown(value: object) -> str:
    return "none" if value is None or value == "" else str(value)


def _info_of_model(path: pathlib.Path) -> dict[str, object]:
    import jax

    from prottrans_jax.interop import huggingface

    checkpoint = huggingface.read(path)
    provenance = path / "provenance.json"
    about = {
        "family": checkpoint.family.name,
        "parameters": sum(x.size for x in jax.tree.leaves(checkpoint.params)),
        "stored": checkpoint.stored_dtype.name,
        "vocabulary": "unknown"
        if checkpoint.unknown_ids
        else checkpoint.vocabulary.name,
        "left_out": ", ".join(checkpoint.left_out) or "nothing",
        "config": dataclasses.asdict(checkpoint.config),
    }
    if provenance.is_file():
        content = json_text.read_object(provenance)
        about |= {key: content.get(key) for key in ("exported_from", "step", "created")}
    return about


def add_reformat(commands) -> None:
    """Adds `prottrans reformat`."""
    parser = console.add_command(
        commands, "reformat", _reformat, "write an embedding file in another format"
    )
    parser.set_defaults(when_stopped="No output was written.")
    parser.add_argument("input", help=".h5 .npz .parquet or .zarr")
    parser.add_argument("output", help=".h5 .npz .parquet .zarr, or .csv per protein")
    parser.add_argument("--pool", help="mean or max: one vector per protein")


def _reformat(arguments: argparse.Namespace) -> int:
    from prottrans_jax.embed import formats, pooling

    pool = pooling.check(arguments.pool, has_cls=False)
    output = paths.place(arguments.output, "output")
    number = formats.reformat(paths.place(arguments.input, "input"), output, pool=pool)
    console.say(f"Wrote {plurals.count(number, 'protein')} to {output}")
    return 0


def add_verify(commands) -> None:
    """Adds `prottrans verify`."""
    parser = console.add_command(
        commands,
        "verify",
        _verify,
        "check an embedding file, or compare a model with reference vectors",
    )
    add = parser.add_argument
    add("file", nargs="?", help="embedding file to read in full")
    add(
        *("-i", "--input"),
        action="append",
        help="FASTA whose proteins the file must hold, or, with --golden, that are "
        "embedded for the comparison; may be repeated",
    )
    add("-m", "--model", help="model to check")
    add("--golden", help=".npz or .h5 with reference vectors of the model")
    embedding.add_pins(add)
    embedding.add_vocabulary(add)
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="type of weights and products",
    )
    add("--key", help="scheme of the keys, as for embed; default: from the file")


def _verify(arguments: argparse.Namespace) -> int:
    for name in ("file", "golden"):
        if getattr(arguments, name):
            flag = name if name == "file" else f"--{name}"
            setattr(arguments, name, paths.place(getattr(arguments, name), flag))
    if arguments.input:
        arguments.input = paths.input_files(arguments.input, "--input")
    if arguments.model and arguments.golden and arguments.input:
        return _verify_model(arguments)
    if not arguments.file or arguments.model or arguments.golden:
        return console.fail(2, "give a FILE, or -m MODEL, --golden FILE and -i FASTA.")
    from prottrans_jax.embed import formats

    with formats.local_copy(arguments.file) as copy:
        return _verify_file(arguments, copy)


def _verify_file(arguments: argparse.Namespace, copy: pathlib.Path) -> int:
    from prottrans_jax.embed import formats, verifying

    about = formats.metadata(copy)
    expected, unusable = None, list[str]()
    if arguments.input:
        scheme = arguments.key or (formats.run_of(copy) or {}).get("key")
        options = about.get("options", {})
        expected, unusable = verifying.expected(
            arguments.input,
            scheme or "auto",
            allow_nucleotides=bool(options.get("allow_nucleotides")),
        )
    check = verifying.check_file(copy, expected)
    faults = unusable + check.faults
    for fault in faults[:20]:
        print(printable.plain(fault))
    if len(faults) > 20:
        print(f"... and {plurals.count(len(faults) - 20, 'more', 'more')}.")
    if check.extra:
        print(
            f"{plurals.count(len(check.extra), 'protein')} of the file not in "
            f"{' and '.join(arguments.input)} (outputs keep proteins of earlier "
            f"inputs): {console.some(check.extra)}"
        )
    if faults:
        number = plurals.count(len(faults), "fault")
        return console.fail(3, f"{arguments.file}: {number}.")
    summary = formats.describe(copy)
    # Not every format stores the length before truncation.
    truncated = max(check.truncated, about.get("truncated", 0))
    cut = "".join(
        f", {number:,} {action} (--long {policy})"
        for number, action, policy in (
            (truncated, "truncated", "truncate"),
            (about.get("chunked", 0), "embedded in pieces", "chunk"),
        )
        if number
    )
    proteins = plurals.count(summary.proteins, "protein")
    print(f"{arguments.file}: {proteins}, {summary.kind}, sound{cut}.")
    return 0


def _verify_model(arguments: argparse.Namespace) -> int:
    from prottrans_jax.embed import verifying
    from prottrans_jax.encoders import loading

    encoder = loading.load_encoder(
        paths.source(arguments.model, "--model"),
        dtype=arguments.dtype,
        revision=arguments.revision,
        sha256=arguments.sha256,
        vocabulary=arguments.vocabulary,
        prefix=arguments.prefix,
    )
    results, others = verifying.compare(encoder, arguments.golden, arguments.input)
    for result in results:
        print(
            f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: largest difference "
            f"{result.largest:.2e}, least cosine {result.cosine:.6f}"
        )
    if others:
        source = " and ".join(arguments.input)
        print(
            f"{len(others):,} of {source} not in {arguments.golden}: "
            f"{console.some(others)}"
        )
    failed = sum(not result.passed for result in results)
    if failed or not results:
        number = plurals.count(len(results), "protein")
        verb = "differs" if failed == 1 else "differ"
        return console.fail(3, f"{failed:,} of {number} {verb}.")
    return 0
