r"""Converts checkpoints between this library and others.

  python -m prottrans_jax.convert --input=hf:prot_t5_xl_uniref50 --output=OUT --to=t5x
  python -m prottrans_jax.convert --input=MODEL_DIR --output=OUT --to=hf --dtype=float16
  python -m prottrans_jax.convert --input=mtf:FOLDER --output=OUT --to=prottrans

Input: hf:, t5x: or mtf: and a folder (or a repository of the hub after hf:), or the
model_dir of an own run; without a prefix the folder tells what it is. Output: a new
folder, `hf` for transformers, `t5x` and `mtf` for T5, `prottrans` to train from.

Exit status: 0 done; 1 the input is not there, damaged or of no model of ours, the
output is there already or cannot be written; 2 a mistake in the flags or places; 130
and 143 stopped by SIGINT and SIGTERM, nothing is left behind.
"""

from collections.abc import Sequence
import pathlib
import shutil
from typing import Any

from prottrans_jax.distributed import stop_signals

if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("convert", stop_signals.NOTHING_IS_LEFT, ends_process=True)

from absl import flags

from prottrans_jax import new_folders
from prottrans_jax.config import command_flags

_INPUT = flags.DEFINE_string("input", None, "What to convert; see above.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
_TO = flags.DEFINE_enum(
    "to", None, ["hf", "t5x", "mtf", "prottrans"], "Form of the output."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the parameters in the output; default: as they are stored.",
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "Whether a repository of the hub may be fetched."
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "Tokenizer's file (vocab.txt, spiece.model, tokenizer.json) of a checkpoint that "
    "lies without one.",
)
_MAX_SHARD_GB = flags.DEFINE_float(
    "max_shard_gb", 5.0, "Largest file of --to=hf, in units of 10^9 bytes."
)
_SCANNED = flags.DEFINE_bool(
    "scanned", False, "With --to=t5x: layers stacked, as in T5X's scalable_t5."
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    return new_folders.run("convert", argv, (_INPUT, _OUTPUT, _TO), _convert, _list)


def _convert(source: str, output: pathlib.Path) -> list[pathlib.PurePath]:
    """Writes the output, and says what it found and wrote; returns the files."""
    import jax
    from jax import numpy as jnp

    from prottrans_jax.checkpoints import opening

    options: dict[str, Any] = {
        "download": _DOWNLOAD.value,
        "vocabulary": _VOCABULARY.value,
    }
    if _TO.value == "prottrans":
        # All other forms are written from views, and cast an array at a time.
        options["scan_layers"] = True
        if _DTYPE.value:
            options["param_dtype"] = _DTYPE.value
    found = opening.read(source, **options)
    count = sum(x.size for x in jax.tree.leaves(found.params))
    print(
        f"Found {found.form} in {found.source}\n"
        f"  {type(found.config).__name__}: {_sizes(found.config)}\n"
        f"  {count:,} parameters, {found.stored_dtype.name}"
    )
    written = _write(found, output)
    stored = _DTYPE.value or found.stored_dtype.name
    size = count * jnp.dtype(stored).itemsize
    print(f"Wrote {stored}, {size / 1e6:,.1f} MB of parameters:")
    return [path.relative_to(output) for path in written]


def _list(written: list[pathlib.PurePath], output: pathlib.Path) -> None:
    for path in written:
        print(f"  {output / path}")


def _sizes(config: Any) -> str:
    names = ("num_layers", "num_decoder_layers", "num_heads", "d_model", "d_ff")
    return ", ".join(
        f"{name}={getattr(config, name)}"
        for name in (*names, "vocab_size")
        if hasattr(config, name)
    )


def _write(found: Any, output: pathlib.Path) -> list[pathlib.Path]:
    if _TO.value == "prottrans":
        from prottrans_jax.checkpoints import opening

        return [opening.save(output, found)]
    if _TO.value == "hf":
        return _write_huggingface(found, output)
    if found.family.name != "t5":
        raise ValueError(
            f"--to={_TO.value} is for T5 only; this is {found.family.name}. Choose "
            "--to=hf or --to=prottrans."
        )
    from prottrans_jax.interop import mesh_tf, side_notes, t5x

    if lost := side_notes.lost(found.config):
        print(
            f"Note: --to={_TO.value} has no place for {', '.join(lost)}. They are in "
            f"{side_notes.NAME} beside it, which this library reads; give them to "
            "other programs in their configuration."
        )
    ids = None if found.unknown_ids else found.vocabulary
    if _TO.value == "mtf":
        print("Note: without slots of the optimizer; start from it, do not go on.")
        return [
            mesh_tf.write(
                output, found.config, found.params, dtype=_DTYPE.value, ids=ids
            )
        ]
    return [
        t5x.write(
            output,
            found.config,
            found.params,
            dtype=_DTYPE.value,
            scanned=_SCANNED.value,
            ids=ids,
        )
    ]


def _write_huggingface(found: Any, output: pathlib.Path) -> list[pathlib.Path]:
    from prottrans_jax.interop import huggingface, vocabularies
    from prottrans_jax.models import electra

    options: dict[str, Any] = {
        "dtype": _DTYPE.value,
        "max_shard_bytes": int(_MAX_SHARD_GB.value * 1e9),
    }
    if isinstance(found.config, electra.ElectraConfig):
        names = ("generator", "discriminator")
        configs = found.config.generator, found.config.discriminator
        parts = zip(names, configs, electra.split_params(found.params), strict=True)
        return [
            path
            for name, config, params in parts
            for path in huggingface.write(output / name, config, params, **options)
        ]
    written = huggingface.write(output, found.config, found.params, **options)
    for name in huggingface.COMPANIONS:
        if found.source.is_dir() and (found.source / name).is_file():
            shutil.copyfile(found.source / name, output / name)
            written.append(output / name)
    if found.unknown_ids:
        print("Note: which id a residue has is not known, and not written.")
    elif _VOCABULARY.value or not any(
        (output / name).exists() for name in vocabularies.FILES
    ):
        written.append(
            vocabularies.write(
                output, found.vocabulary, found.prefix_ids, found.suffix_ids
            )
        )
    return written


if __name__ == "__main__":
    command_flags.run(main)
