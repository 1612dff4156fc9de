r"""Evaluates checkpoints: `python -m prottrans_jax.evaluate --gin_file=sample.gin`.

Takes the gin file and bindings of the run. Prints the means over the whole validation
split for the newest checkpoint, or with --step=all for every one, and appends them to
MODEL_DIR/evaluation.jsonl. The run may still be running: a step that it deletes
meanwhile is skipped with a warning, and "latest" takes the newer one. On a pod it runs
on every host, and under srun, mpirun or torchrun in every task, as training does.

Exit status: 0 done; 1 a checkpoint is damaged (the others were evaluated), the run
deleted all requested steps, another host was lost, or the results could not be written;
2 a mistake in the flags, settings or paths; 75 a batch, a host or the start took too
long; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from collections.abc import Mapping, Sequence
import json
import os
import sys
from typing import Any

from prottrans_jax import printable
from prottrans_jax.distributed import stop_signals

_STOPPED = "Evaluated steps are in evaluation.jsonl."
if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("evaluate", _STOPPED, ends_process=True)

from absl import flags, logging

from prottrans_jax.config import requirements

requirements.check("train")

from prottrans_jax.config import building, mains, places
from prottrans_jax.files import paths

# TensorFlow only reads records here; its start-up messages are irrelevant.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_STEP = flags.DEFINE_string("step", "latest", "A step, 'latest' or 'all'.")
_MAX_BATCHES = flags.DEFINE_integer(
    "max_batches", None, "Number of batches; default: all."
)
mains.define_run_flags()
mains.define_process_flags()


def main(argv: Sequence[str]) -> int:
    """Parses the configuration, restores, evaluates and prints."""
    return stop_signals.guarded("evaluate", _STOPPED, lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise building.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    mains.parse_flags(check_places=places.check_evaluation)

    import jax

    from prottrans_jax.checkpoints import manifests
    from prottrans_jax.data.records import store
    from prottrans_jax.distributed import barriers, roll_call, start
    from prottrans_jax.training import evaluation, trainer

    directory = paths.place(building.build("%MODEL_DIR"), "MODEL_DIR")
    bound = building.bound(trainer.train)
    all_written = True
    try:
        start.initialize(**mains.process_arguments())
        arguments = {
            name: building.build(bound[name])
            for name in ("objective", "optimizer", "partitioner", "eval_data", "limits")
            if name in bound
        }
        for step, results in evaluation.evaluate_checkpoints(
            model_dir=directory,
            step=_STEP.value,
            max_batches=_MAX_BATCHES.value,
            config_text=building.resolved_config(),
            **arguments,
        ):
            if jax.process_index():
                continue
            for name, scalars in results.items():
                print(f"step {step}  {name}")
                for key, value in scalars.items():
                    print(f"  {key:24} {value:10.4f}")
            all_written &= _write(directory, {"step": step, **results})
    except (manifests.CheckpointError, store.DamageError) as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        return 1
    except barriers.ProcessesMissing as error:
        print(f"error: {error} Start the same command on all hosts.", file=sys.stderr)
        return roll_call.EXIT_STALLED
    except ValueError as error:
        raise building.UsageError(str(error)) from error
    return 0 if all_written else 1


def _write(directory: paths.Place, results: Mapping[str, Any]) -> bool:
    """Appends results to `evaluation.jsonl`; on failure prints why, returns False."""
    from prottrans_jax.files import appending

    path = directory / "evaluation.jsonl"
    try:
        appending.append_line(path, json.dumps(results))
    except OSError as error:
        reason = error.strerror or error
        print(f"error: {path} could not be written: {reason}.", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    mains.run(main)
