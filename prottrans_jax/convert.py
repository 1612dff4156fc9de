r"""Converts checkpoints between this library and others.

  python -m prottrans_jax.convert --input=hf:prot_t5_xl_uniref50 --output=OUT --to=t5x
  python -m prottrans_jax.convert --input=MODEL_DIR --output=OUT --to=hf --dtype=float16
  python -m prottrans_jax.convert --input=mtf:FOLDER --output=OUT --to=prottrans

Input: hf:, t5x: or mtf: and a folder (or a repository of the hub after hf:), or the
model_dir of a run of this library; without a prefix the format is detected. Output: a
new folder, `hf` for transformers, `t5x` and `mtf` for T5, `prottrans` to train from.

Exit status: 0 done; 1 the input is missing, damaged or not supported, or the output
exists or cannot be written; 2 a mistake in flags or paths; 130 and 143 stopped by
SIGINT and SIGTERM, without leaving files behind.
"""

from collections.abc import Sequence
import pathlib
from typing import TYPE_CHECKING, Any

from prottrans_jax.distributed import stop_signals

if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("convert", stop_signals.NOTHING_IS_LEFT, ends_process=True)

from absl import flags

from prottrans_jax.checkpoints import new_folders
from prottrans_jax.config import command_flags
from prottrans_jax.files import paths

if TYPE_CHECKING:
    from prottrans_jax import types
    from prottrans_jax.interop import families

_INPUT = flags.DEFINE_string("input", None, "Checkpoint to convert; see above.")
_OUTPUT = flags.DEFINE_string("output", None, "Output folder.")
_TO = flags.DEFINE_enum(
    "to", None, ["hf", "t5x", "mtf", "prottrans"], "Format of the output."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the parameters in the output; default: the stored type.",
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "Whether to fetch a repository that is not cached."
)
_REVISION = flags.DEFINE_string(
    "revision", None, "Branch, tag or commit of a repository of the hub."
)
_SHA256 = flags.DEFINE_string(
    "sha256",
    None,
    "SHA-256 of the weights in Hugging Face's layout, of several files separated by "
    "commas; other weights are refused.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "Tokenizer file (vocab.txt, spiece.model, tokenizer.json) for a checkpoint without "
    "one.",
)
_MAX_SHARD_GB = flags.DEFINE_float(
    "max_shard_gb", 5.0, "Maximum file size of --to=hf, in units of 10^9 bytes."
)
_SCANNED = flags.DEFINE_bool(
    "scanned", False, "With --to=t5x: stack layers as T5X's scalable_t5 does."
)
_OPTIMIZER_STATE = flags.DEFINE_bool(
    "optimizer_state",
    False,
    "With --to=t5x, for a run of this library with Adafactor: also its step and second "
    "moments, so that T5X goes on with it.",
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    return new_folders.run("convert", argv, (_INPUT, _OUTPUT, _TO), _convert, _list)


def _convert(source: str, output: pathlib.Path) -> list[pathlib.PurePath]:
    """Writes and describes the output; returns the files."""
    from prottrans_jax.checkpoints import opening

    if _OPTIMIZER_STATE.value and (_TO.value != "t5x" or _SCANNED.value):
        raise ValueError(
            "--optimizer_state is for --to=t5x without --scanned: no other format here "
            "holds the state of an optimizer."
        )
    options: dict[str, Any] = {
        "download": _DOWNLOAD.value,
        "revision": _REVISION.value,
        "sha256": _SHA256.value,
        "vocabulary": _VOCABULARY.value,
    }
    if _TO.value == "prottrans":
        # All other formats are written from views and cast one array at a time.
        options["scan_layers"] = True
        if _DTYPE.value:
            options["param_dtype"] = _DTYPE.value
    with opening.opened(source, **options) as checkpoint:
        return _write_described(checkpoint, output)


def _write_described(
    checkpoint: "families.Checkpoint", output: pathlib.Path
) -> list[pathlib.PurePath]:
    import jax
    from jax import numpy as jnp

    count = sum(x.size for x in jax.tree.leaves(checkpoint.params))
    print(
        f"Found {checkpoint.form} in {checkpoint.source}\n"
        f"  {type(checkpoint.config).__name__}: {_sizes(checkpoint.config)}\n"
        f"  {count:,} parameters, {checkpoint.stored_dtype.name}"
    )
    written = _write(checkpoint, output)
    stored = _DTYPE.value or checkpoint.stored_dtype.name
    size = count * jnp.dtype(stored).itemsize
    print(f"Wrote {stored}, {size / 1e6:,.1f} MB of parameters:")
    return [path.relative_to(output) for path in written]


def _list(written: list[pathlib.PurePath], output: paths.Place) -> None:
    for path in written:
        print(f"  {output / path}")


def _sizes(config: "types.ModelConfig") -> str:
    names = ("num_layers", "num_decoder_layers", "num_heads", "d_model", "d_ff")
    fields = vars(config)
    return ", ".join(
        f"{name}={fields[name]}" for name in (*names, "vocab_size") if name in fields
    )


def _write(
    checkpoint: "families.Checkpoint", output: pathlib.Path
) -> list[pathlib.Path]:
    if _TO.value == "prottrans":
        from prottrans_jax.checkpoints import opening

        return [opening.save(output, checkpoint)]
    if _TO.value == "hf":
        return _write_huggingface(checkpoint, output)
    from prottrans_jax.models import t5

    config = checkpoint.config
    if not isinstance(config, t5.T5Config):
        raise ValueError(
            f"--to={_TO.value} is for T5 only; this is {checkpoint.family.name}. "
            "Choose --to=hf or --to=prottrans."
        )
    from prottrans_jax.interop import mesh_tf, side_notes, t5x

    if lost := side_notes.lost(config):
        print(
            f"Note: --to={_TO.value} cannot store {', '.join(lost)}. They are in "
            f"{side_notes.NAME} beside it, which this library reads; set them in the "
            "configuration of other programs."
        )
    ids = None if checkpoint.unknown_ids else checkpoint.vocabulary
    if _TO.value == "mtf":
        print("Note: no optimizer slots: start a new run from it, do not resume.")
        return [
            mesh_tf.write(
                output,
                config,
                checkpoint.params,
                dtype=_DTYPE.value,
                ids=ids,
            )
        ]
    step, slots = 0, None
    if _OPTIMIZER_STATE.value:
        from prottrans_jax.checkpoints import t5x_states

        step, slots = t5x_states.slots_of_run(checkpoint)
    return [
        t5x.write(
            output,
            config,
            checkpoint.params,
            dtype=_DTYPE.value,
            step=step,
            slots=slots,
            scanned=_SCANNED.value,
            ids=ids,
        )
    ]


def _write_huggingface(
    checkpoint: "families.Checkpoint", output: pathlib.Path
) -> list[pathlib.Path]:
    from prottrans_jax.interop import huggingface, vocabularies
    from prottrans_jax.models import electra

    options: dict[str, Any] = {
        "dtype": _DTYPE.value,
        "max_shard_bytes": int(_MAX_SHARD_GB.value * 1e9),
    }
    if isinstance(checkpoint.config, electra.ElectraConfig):
        names = ("generator", "discriminator")
        configs = checkpoint.config.generator, checkpoint.config.discriminator
        parts = zip(
            names, configs, electra.split_params(checkpoint.params), strict=True
        )
        return [
            path
            for name, config, params in parts
            for path in huggingface.write(output / name, config, params, **options)
        ]
    written = huggingface.write(output, checkpoint.config, checkpoint.params, **options)
    for name in huggingface.COMPANIONS:
        if checkpoint.source.is_dir() and (checkpoint.source / name).is_file():
            (output / name).write_bytes((checkpoint.source / name).read_bytes())
            written.append(output / name)
    if checkpoint.unknown_ids:
        print("Note: the ids of residues are unknown, so no vocabulary is written.")
    elif _VOCABULARY.value or not any(
        (output / name).exists() for name in vocabularies.FILES
    ):
        written.append(
            vocabularies.write(
                output,
                checkpoint.vocabulary,
                checkpoint.prefix_ids,
                checkpoint.suffix_ids,
            )
        )
    return written


if __name__ == "__main__":
    command_flags.run(main)
