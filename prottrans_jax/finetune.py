r"""Trains a head on labelled proteins, from a gin file.

  python -m prottrans_jax.finetune --gin_file=finetune/secondary_structure_3.gin \
      --model_dir=RUN --gin_bindings="DATA = ['train.jsonl', 'val.jsonl']"

The same command resumes a stopped or killed run. RUN/head is for `prottrans predict
--head RUN`. `prottrans finetune` does the same without gin.

Exit status: 0 done; 1 failed: a checkpoint is damaged, a save failed, another run
writes to model_dir, disk full; 2 a mistake in the flags, settings, data or paths; 3
loss or gradient not finite; 143 and 130 stopped by SIGTERM and SIGINT.
"""

from collections.abc import Sequence
import sys

from prottrans_jax.distributed import stop_signals

_STOPPED = "The same command starts or resumes it."
if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("finetune", _STOPPED, ends_process=True)

from absl import flags, logging

from prottrans_jax import printable
from prottrans_jax.config import requirements

requirements.check("finetune")

from prottrans_jax.config import building, mains, places

mains.define_flags()
flags.DEFINE_string(
    "model_dir", None, "Directory of the run; the same as binding MODEL_DIR."
)


def main(argv: Sequence[str]) -> int:
    """Parses the configuration, trains, and prints the metrics."""
    if len(argv) > 1:
        raise building.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    mains.parse_flags(check_places=places.check_training)

    from prottrans_jax.checkpoints import manifests
    from prottrans_jax.downstream import finetuning
    from prottrans_jax.training import logbook

    finetune = building.configured(finetuning.finetune)
    try:
        result = finetune(config_text=building.resolved_config())
    except logbook.NonFiniteError as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        return 3
    except manifests.CheckpointError as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        return 1
    except ValueError as error:
        raise building.UsageError(str(error)) from error
    if result.head is None:
        print("Stopped by a signal. The same command resumes from here.")
        return result.summary.exit_code
    for line in finetuning.summary_lines(result):
        print(line)
    print(f"Head        {result.folder}")
    return 0


if __name__ == "__main__":
    mains.run(main)
