r"""Exports a trained model: a folder to embed with, or to hand on.

  python -m prottrans_jax.export --checkpoint=MODEL_DIR --output=FOLDER
  python -m prottrans_jax.export --checkpoint=MODEL_DIR --output=FOLDER \
      --dtype=bfloat16 --part=all --stablehlo

The folder holds safetensors weights and config.json, which `load_encoder`, `prottrans
embed` and transformers' `from_pretrained` read, the vocabulary, provenance.json (how it
was trained, step, SHA-256 of every file) and a note on the licence. No optimizer state.

Exit status: 0 done; 1 the checkpoint is not there, damaged or of no model of ours, the
output is there already or cannot be written; 2 a mistake in the flags or places; 130
and 143 stopped by SIGINT and SIGTERM, nothing is left behind.
"""

from collections.abc import Sequence
import os
import pathlib
import sys

from prottrans_jax import stop_signals

_STOPPED = "nothing was left behind."
if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("export", _STOPPED, ends_process=True)

from absl import flags, logging

from prottrans_jax import command_flags
from prottrans_jax.files import paths, writing

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A model_dir, one step of it, or anything that `convert --input` takes.",
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
_PART = flags.DEFINE_enum(
    "part",
    "encoder",
    ["encoder", "all"],
    "The encoder alone, or with decoder and heads.",
)
_NETWORK = flags.DEFINE_enum(
    "network",
    None,
    ["generator", "discriminator"],
    "Which network of an ELECTRA in training; default: the discriminator.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the weights; default: as they are stored.",
)
_STABLEHLO = flags.DEFINE_bool(
    "stablehlo",
    False,
    "Also write encoder.stablehlo: the encoder with its weights as one program for "
    "cpu, cuda and tpu that needs jax alone; batch and length are free.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "Tokenizer's file (vocab.txt, spiece.model, tokenizer.json) of a checkpoint that "
    "lies without one.",
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    if len(argv) > 1:
        return _fail(2, f"unexpected {argv[1]!r}; see --help.")
    missing = [flag.name for flag in (_CHECKPOINT, _OUTPUT) if not flag.value]
    if missing:
        return _fail(2, f"--{' and --'.join(missing)} must be given; see --help.")
    # Nothing is computed: no accelerator is taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.set_verbosity(logging.WARNING)
    try:
        checkpoint = paths.source(_CHECKPOINT.value or "", "--checkpoint")
        output = paths.local(_OUTPUT.value or "", "--output")
    except paths.PathError as error:
        return _fail(2, str(error))
    return stop_signals.guarded("export", _STOPPED, lambda: _run(checkpoint, output))


def _run(checkpoint: str, output: pathlib.Path) -> int:
    from prottrans_jax import checkpoints, exporting

    try:
        with (
            writing.new_folder(output) as folder,
            stop_signals.before_exit(lambda: writing.remove(folder.parent)),
        ):
            files = exporting.export(
                checkpoint,
                folder,
                encoder_only=_PART.value == "encoder",
                network=_NETWORK.value,
                dtype=_DTYPE.value,
                stablehlo=_STABLEHLO.value,
                vocabulary=_VOCABULARY.value,
            )
    except OSError as error:
        return _fail(1, f"{paths.explain(error).rstrip('.')}.")
    except (ValueError, checkpoints.CheckpointError) as error:
        return _fail(1, str(error))
    print(f"Exported to {output}:")
    for name, size in files.items():
        print(f"  {name}  {size:,} bytes")
    print(f"Next: prottrans embed -i proteins.fasta -o proteins.h5 -m {output}")
    return 0


def _fail(status: int, why: str) -> int:
    print(f"export: {why}", file=sys.stderr)
    return status


if __name__ == "__main__":
    command_flags.run(main)
