r"""Pre-trains a model: `python -m prottrans_jax.train --gin_file=sample.gin`.

The same command resumes a stopped or killed run. On a pod it runs on every host, and
under srun, mpirun or torchrun in every task; the processes find each other:

  srun python -m prottrans_jax.train --gin_file=prot_t5_xl.gin \
      --data_dir=/mnt/records --model_dir=/mnt/xl

Exit status: 0 done; 1 failed: a checkpoint or record is damaged, a save failed, another
host was lost or hangs, another run writes to model_dir, disk full, too many open files;
2 a mistake in the flags, settings or paths; 3 loss or gradient not
finite, or a loss spike; 75 a step, a
host or the start took too long; 143 and 130 stopped by SIGTERM and SIGINT, with a
checkpoint, before the last step was saved and evaluated.
"""

from collections.abc import Sequence
import os
import sys
import time

from prottrans_jax.distributed import stop_signals

if __name__ == "__main__":
    # Before the heavy imports below; `stopping.StopSignal` takes over in the run.
    stop_signals.install(
        "train",
        "Training had not begun: the same command starts or resumes it.",
        ends_process=True,
    )

from absl import flags, logging

from prottrans_jax import printable
from prottrans_jax.config import requirements

requirements.check("train")

from prottrans_jax.config import building, mains, places
from prottrans_jax.files import paths

# TensorFlow only reads records here; its start-up messages are irrelevant.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_STARTED = time.perf_counter()

_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "Write TensorBoard files.")
mains.define_run_flags()
mains.define_process_flags()


def main(argv: Sequence[str]) -> int:
    """Parses the configuration, trains, and prints results and next steps."""
    if len(argv) > 1:
        raise building.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    mains.parse_flags(check_places=places.check_training)

    from prottrans_jax.checkpoints import manifests
    from prottrans_jax.data.records import store
    from prottrans_jax.distributed import barriers, roll_call, start
    from prottrans_jax.files import leases
    from prottrans_jax.training import (
        goodput,
        logbook,
        loss_spikes,
        replicas,
        trainer,
    )

    train = building.configured(trainer.train)
    try:
        start.initialize(**mains.process_arguments())
        summary = train(
            config_text=building.resolved_config(),
            writers=_tensorboard if _TENSORBOARD.value else tuple,
            started=goodput.process_start(),
        )
    except (logbook.NonFiniteError, loss_spikes.LossSpikeError) as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        return 3
    except (
        manifests.CheckpointError,
        replicas.CorruptionError,
        store.DamageError,
    ) as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        return 1
    except leases.LostError as error:
        print(printable.plain(f"error: {paths.explain(error)}"), file=sys.stderr)
        return 1
    except barriers.ProcessesMissing as error:
        print(f"error: {error} Start the same command on all hosts.", file=sys.stderr)
        return roll_call.EXIT_STALLED
    except ValueError as error:
        raise building.UsageError(str(error)) from error
    try:
        _print_summary(summary)
        sys.stdout.flush()
    except OSError as error:  # The run is done all the same.
        logging.error("Standard output could not be written: %s.", error.strerror)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return summary.exit_code


def _tensorboard():
    from prottrans_jax.training import event_files

    directory = paths.place(building.build("%MODEL_DIR"), "MODEL_DIR")
    return (event_files.EventWriter(directory / "tensorboard"),)


# Metrics of an evaluation in printed order; each family has some of them.
_MEANINGS = {
    "loss": "loss over all targets (T5: most of it copying; ELECTRA: weighted sum)",
    "corrupted_loss": "loss at corrupted, masked or predicted positions",
    "masked_loss": "  at masked positions",
    "substituted_loss": "  at positions with another amino acid",
    "kept_loss": "  at unchanged positions, which can be copied",
    "unigram_entropy": "unigram entropy: loss from residue frequencies alone",
    "order_loss": "loss of the order of pairs; 0.6931 by chance",
    "discriminator_loss": "discriminator: was this token replaced?",
    "discriminator_accuracy": "accuracy of the discriminator",
    "always_original_accuracy": "  accuracy of always answering 'original'",
    "discriminator_replaced_accuracy": "  share of replaced tokens that it detects",
    "targets_left_out": "share of targets beyond the queries of a row",
}


def _print_summary(summary) -> None:
    from prottrans_jax.training import downstream_evaluation

    total = time.perf_counter() - _STARTED
    print(f"\nStep {summary.step}. {total:.0f} s in all:", end=" ")
    seconds = {**summary.seconds, "start": total - sum(summary.seconds.values())}
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    print(", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in parts))
    if summary.run_seconds:
        run_s = max(sum(summary.run_seconds.values()), 1e-9)
        shares = (f"{k} {v / run_s:.1%}" for k, v in summary.run_seconds.items())
        print(f"Whole run, {run_s:.0f} s with all restarts: {', '.join(shares)}")
    for name, scalars in summary.evaluation.items():
        if name == downstream_evaluation.NAME:
            _print_downstream(scalars)
            continue
        print(f"\n{name}, nats per residue, or shares:")
        for key, meaning in _MEANINGS.items():
            if key in scalars:
                print(f"  {scalars[key]:8.4f}  {meaning}")
    run_dir = summary.checkpoint.parent.parent
    print(f"\nCheckpoint  {summary.checkpoint}")
    print(f"Logs        {run_dir}/metrics.jsonl, tensorboard --logdir {run_dir}")
    for problem in summary.problems:
        print(f"Warning     {problem}")
    if summary.exit_code:
        print("Stopped by a signal. The same command resumes from here.")
    else:
        print(f"Next        {_more_steps(summary)}")
        print(
            "            Your own proteins: python -m "
            "prottrans_jax.prepare --input your.fasta --output DIR,\n            then "
            'train with --data_dir=DIR and --gin_bindings="MIXTURE_OR_TASK_NAME = '
            f"'{_task_of_own()}'\"."
        )


def _print_downstream(scalars) -> None:
    print("\nHeads on the vectors of the model, with 95 % intervals:")
    for name, value in scalars.items():
        if name.endswith(("_low", "_high")):
            continue
        # One protein has no interval.
        ends = [scalars.get(f"{name}{end}", float("nan")) for end in ("_low", "_high")]
        print(f"  {value:8.4f}  ({ends[0]:.4f} to {ends[1]:.4f})  {name}")


def _more_steps(summary) -> str:
    """How to train a finished run for more steps."""
    more = "--gin_bindings='TRAIN_STEPS = ...'"
    if not building.total_steps_shape_the_run():
        return f"the same command with {more} resumes from here."
    run_dir = summary.checkpoint.parent.parent
    lines = (
        f"the learning rate of this run ends at step {summary.step}: with more steps "
        "it is another run.",
        f"Start it from these parameters: {more} --model_dir=NEW_DIR",
        f"--gin_bindings=\"INITIAL_CHECKPOINT_PATH = '{run_dir}'\".",
        f"Or resume here with the schedule of the new total: the same with {more}",
        "--gin_bindings='run_settings.Start.accept_config_changes = True'.",
    )
    return "\n            ".join(lines)


def _task_of_own() -> str:
    """Name of the task for the user's own proteins, with this run's objective."""
    objective = str(building.build("%MIXTURE_OR_TASK_NAME")).partition("_")[2]
    return f"fasta_{objective}"


if __name__ == "__main__":
    mains.run(main)
