r"""Exports a trained model to a folder, for embedding or distribution.

  python -m prottrans_jax.export --checkpoint=MODEL_DIR --output=FOLDER
  python -m prottrans_jax.export --checkpoint=MODEL_DIR --output=FOLDER \
      --dtype=bfloat16 --part=all --stablehlo

The folder holds safetensors weights and config.json, which `load_encoder`, `prottrans
embed` and transformers' `from_pretrained` read, the vocabulary, provenance.json
(training configuration, step, SHA-256 of every file) and a note on the licence. No
optimizer state.

Exit status: 0 done; 1 the checkpoint is missing, damaged or not supported, or the
output exists or cannot be written; 2 a mistake in flags or paths; 130 and 143 stopped
by SIGINT and SIGTERM, without leaving files behind.
"""

from collections.abc import Mapping, Sequence
import pathlib

from prottrans_jax.distributed import stop_signals

if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("export", stop_signals.NOTHING_IS_LEFT, ends_process=True)

from absl import flags

from prottrans_jax.checkpoints import new_folders
from prottrans_jax.config import command_flags
from prottrans_jax.files import paths

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A model_dir, one of its steps, or any input of `prottrans_jax.convert`.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Output folder.")
_PART = flags.DEFINE_enum(
    "part",
    "encoder",
    ["encoder", "all"],
    "The encoder only, or all with decoder and heads.",
)
_NETWORK = flags.DEFINE_enum(
    "network",
    None,
    ["generator", "discriminator"],
    "Network of an ELECTRA run; default: the discriminator.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the weights; default: the stored type.",
)
_STABLEHLO = flags.DEFINE_bool(
    "stablehlo",
    False,
    "Also write encoder.stablehlo: the encoder with its weights as one program for "
    "cpu, cuda and tpu that needs only jax and accepts any batch and length.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "Tokenizer file (vocab.txt, spiece.model, tokenizer.json) for a checkpoint without "
    "one.",
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    return new_folders.run("export", argv, (_CHECKPOINT, _OUTPUT), _export, _list)


def _export(checkpoint: str, folder: pathlib.Path) -> Mapping[str, int]:
    from prottrans_jax.encoders import exporting

    return exporting.export(
        checkpoint,
        folder,
        encoder_only=_PART.value == "encoder",
        network=_NETWORK.value,
        dtype=_DTYPE.value,
        stablehlo=_STABLEHLO.value,
        vocabulary=_VOCABULARY.value,
    )


def _list(files: Mapping[str, int], output: paths.Place) -> None:
    from prottrans_jax.encoders import exporting

    exporting.print_files(files, output)


if __name__ == "__main__":
    command_flags.run(main)
