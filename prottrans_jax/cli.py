"""Console script `prottrans`: embeds, scores and generates, trains heads, predicts.

  prottrans embed -i proteins.fasta -o proteins.h5 -m prot_t5
  prottrans score -i proteins.fasta -o scores.csv -m prot_bert
  prottrans generate --prompt MKT -o new.fasta -m run
  prottrans finetune --task labels.csv -m prot_t5 -o RUN
  prottrans predict -i proteins.fasta -o labels.tsv --head RUN
  prottrans models
  prottrans info proteins.h5

Exit status: 0 done; 2 a mistake in flags or paths, or the output is in use by another
process or was made by another run or program; 3 proteins are missing from the output,
the input cannot be used, or `verify` reports faults; 4 the disk is full, or an
unexpected error; 130 and 143 stopped by SIGINT and SIGTERM: after a
stop, computed vectors are kept and the same command continues. `export` has the
statuses of `prottrans_jax.export`: 1 if a file cannot be read or written. `supervise`
ends with the status of its command.
"""

import argparse
from collections.abc import Sequence
import re
import sys

# Light imports only: until `main` runs, signals have Python's default handlers.
from prottrans_jax import __version__, printable
from prottrans_jax.distributed import stop_signals

# Commands that are mains: T5X's modes, and ours.
_MAINS = {
    "eval": "prottrans_jax.evaluate",
    "evaluate": "prottrans_jax.evaluate",
    "precompile": "prottrans_jax.precompile",
    "prepare": "prottrans_jax.prepare",
    "train": "prottrans_jax.train",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit status.

    Args:
      argv: Arguments; None: those of this process, which a stop signal may then end.
        With a list the caller's process continues after a signal.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # `supervise` waits for its command, which saves a checkpoint after a signal.
    ends_process = argv is None and list(arguments[:1]) != ["supervise"]
    watch = stop_signals.install("prottrans", "", ends_process=ends_process)
    return watch.guard(lambda: _run(arguments, watch))


def _run(argv: Sequence[str], watch: stop_signals.Watch) -> int:
    from prottrans_jax.commands import configuration, console

    printable.guard_logs()

    if list(argv[:1]) == ["convert"]:
        return console.fail(
            2,
            "there is no command convert: `prottrans reformat` writes an embedding "
            "file in another format, `python -m prottrans_jax.convert` converts a "
            "checkpoint.",
        )
    if (command := (argv[:1] or [""])[0]) in _MAINS:
        return console.fail(
            2, f"there is no command {command}: use python -m {_MAINS[command]}."
        )
    parser = _parser()
    argv = _with_negative_layers(argv)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    watch.advice = getattr(arguments, "when_stopped", "")
    try:
        if getattr(arguments, "config", None):
            configuration.set_defaults(arguments.parser, arguments.config)
            arguments = parser.parse_args(argv)
        console.set_log_level(arguments)
        return arguments.run(arguments)
    except BrokenPipeError:
        return 0
    except Exception as error:
        # A stop may have caused the error: report the stop instead.
        stop_signals.check()
        return _explain(error, arguments)


def _with_negative_layers(argv: Sequence[str]) -> list[str]:
    """Rewrites `--layer -2,-1` to `--layer=-2,-1`: argparse takes -2,-1 for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined[-1:] in (["--layer"], ["--layers"]) and re.match(r"-\d", word):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined


def _explain(error: Exception, arguments: argparse.Namespace) -> int:
    """Prints an error in one line; with -v, raises unexpected ones."""
    from prottrans_jax.checkpoints import manifests
    from prottrans_jax.commands import console
    from prottrans_jax.embed import inputs, job, shards
    from prottrans_jax.files import locks, paths
    from prottrans_jax.proteins import fasta_problems

    if isinstance(error, fasta_problems.FastaError):
        can_skip = hasattr(arguments, "on_bad")
        skippable = can_skip and error.problem.line and not error.problem.fatal
        hint = " (--on-bad skip omits such records.)" if skippable else ""
        return console.fail(3, f"{error}{hint}")
    if isinstance(error, inputs.DuplicateError):
        return console.fail(3, str(error))
    refusals = locks.LockedError | shards.OtherRunError | manifests.CheckpointError
    if isinstance(error, refusals):
        return console.fail(2, str(error))
    if isinstance(error, job.DiskFullError):
        return console.fail(4, error.strerror or str(error))
    mistakes = (
        FileNotFoundError
        | FileExistsError
        | IsADirectoryError
        | NotADirectoryError
        | PermissionError
    )
    if isinstance(error, mistakes):
        return console.fail(2, paths.explain(error))
    if isinstance(error, ValueError):
        return console.fail(2, str(error))
    if isinstance(error, OSError):
        return console.fail(4, paths.explain(error))
    if arguments.verbose:
        raise error
    return console.fail(4, f"{type(error).__name__}: {error} (-v shows the traceback.)")


def _parser() -> argparse.ArgumentParser:
    from prottrans_jax.commands import (
        console,
        contact_prediction,
        embedding,
        evaluating,
        generating,
        inspection,
        labelling,
        models,
        prediction,
        score,
        supervising,
        tuning,
    )

    parser = console.Parser(
        prog="prottrans",
        description="ProtTrans protein language models.",
        epilog="Exit status: 0 done; 2 wrong use; 3 proteins missing; 4 other errors.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="command")
    embedding.add_embed(commands)
    score.add_score(commands)
    tuning.add_finetune(commands)
    prediction.add_predict(commands)
    contact_prediction.add_contacts(commands)
    generating.add_generate(commands)
    models.add_models(commands)
    inspection.add_info(commands)
    inspection.add_reformat(commands)
    inspection.add_verify(commands)
    labelling.add_labels(commands)
    evaluating.add_autoeval(commands)
    models.add_export(commands)
    supervising.add_supervise(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
