"""Prepares a data set: FASTA in, checksummed and shuffled records out.

  python -m prottrans_jax.prepare --input=uniref50.fasta.gz --output=data/uniref50
  python -m prottrans_jax.prepare --input=a.fasta --input=b.fasta --output=data/both
  zcat *.fasta.gz | python -m prottrans_jax.prepare --input=- --output=data/mine
  python -m prottrans_jax.prepare --task=mine --task_module=my_tasks --output=data/mine
  python -m prottrans_jax.prepare --verify=data/uniref50

Exit status: 0 done; 1 the input cannot be used, the output is finished already, is not
writable or is being written by another process, or the disk is full; 2 wrong flags or
paths, or the output holds files that this program did not make; 3 done, but bad records
were left out (--on_bad=skip), or --verify found damage; 130 and 143 stopped by SIGINT
and SIGTERM, with no files left behind.
"""

import os
import sys

from prottrans_jax import printable
from prottrans_jax.distributed import stop_signals

_STOPPED = "nothing was left behind."
if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("prepare", _STOPPED, ends_process=True)

from absl import flags

from prottrans_jax.config import requirements

requirements.check("train")

from prottrans_jax.config import command_flags
from prottrans_jax.data.records import input_sources, store
from prottrans_jax.data.records import preparing as prepare_lib
from prottrans_jax.files import locks, ownership, paths
from prottrans_jax.proteins import fasta_problems, nucleotides, plurals, vocabulary

_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "FASTA files or tables, plain or compressed, comma separated, in this order; - is "
    "stdin. May be repeated.",
)
_VALIDATION_INPUT = flags.DEFINE_multi_string(
    "validation_input",
    [],
    "FASTA files of the validation split, in place of --validation_fraction. May be "
    "repeated.",
)
_TASK = flags.DEFINE_string(
    "task", None, "A SeqIO task instead of files: its source is read, split by split."
)
_TASK_MODULE = flags.DEFINE_list(
    "task_module", [], "Modules to import first; they register the task."
)
_TFDS = flags.DEFINE_string(
    "tfds", None, "A TFDS data set instead of files, as name or name:version."
)
_TFDS_DATA_DIR = flags.DEFINE_string("tfds_data_dir", None, "Folder of TFDS data sets.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
_NAME = flags.DEFINE_string(
    "name", None, "Name of the data set; default: that of the folder."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a finished folder.")
_VERIFY = flags.DEFINE_string(
    "verify", None, "Only compare this prepared folder with its checksums."
)
_ON_BAD = flags.DEFINE_enum(
    "on_bad", "error", ["error", "skip"], "Stop at a bad record, or leave it out."
)
_ALLOW_NUCLEOTIDES = flags.DEFINE_bool(
    "allow_nucleotides", False, "Accept files of A, C, G, T, U and N as proteins."
)
_MIN_LENGTH = flags.DEFINE_integer(
    "min_length", 1, "Residues; shorter records are left out."
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Residues; longer records are left out."
)
_DEDUPLICATE = flags.DEFINE_bool(
    "deduplicate",
    True,
    "Keep only the first record of a sequence; else all of them, in one split.",
)
_VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction", 0.01, "Share of ids that goes to the validation split."
)
_SHUFFLE = flags.DEFINE_bool("shuffle", True, "Random order of records.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the shuffle.")
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards", None, "Shards of the split train; default: 64 MiB of text each."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Default: one for each core."
)


# Wrong paths, as opposed to wrong content of files.
_PATH_ERRORS = (
    paths.PathError,
    ownership.ForeignError,
    locks.NotALockError,
)


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    if len(argv) > 1:
        return _fail(2, f"unexpected {argv[1]!r}: files are given as --input=FILE.")
    return stop_signals.guarded("prepare", _STOPPED, _run)


def _run() -> int:
    try:
        if _VERIFY.value is not None:
            return _verify(paths.place(_VERIFY.value, "--verify"))
        return _prepare()
    except nucleotides.NucleotidesError as e:
        return _fail(2, str(e))
    except _PATH_ERRORS as e:
        return _fail(2, str(e))
    except locks.LockedError as e:
        return _fail(1, str(e))
    except ValueError as e:
        hint = ""
        if isinstance(e, fasta_problems.FastaError) and not e.problem.fatal:
            hint = " (--on_bad=skip leaves out, counts and names such records.)"
        return _fail(1, f"{e}{hint}")
    except ImportError as e:
        return _fail(1, f"{e}")
    except OSError as e:
        return _fail(1, f"{e.filename or _OUTPUT.value}: {e.strerror or e}.")


def _prepare() -> int:
    inputs = [_INPUT.value or _VALIDATION_INPUT.value, _TASK.value, _TFDS.value]
    if sum(map(bool, inputs)) != 1:
        return _fail(2, "give one of --input, --task and --tfds.")
    if _OUTPUT.value is None:
        return _fail(2, "--output is missing: the folder to make.")
    output = paths.place(_OUTPUT.value, "--output")
    try:
        options = prepare_lib.Options(
            validation_fraction=_VALIDATION_FRACTION.value,
            min_length=_MIN_LENGTH.value,
            max_length=_MAX_LENGTH.value,
            deduplicate=_DEDUPLICATE.value,
            shuffle=_SHUFFLE.value,
            seed=_SEED.value,
            num_shards=_NUM_SHARDS.value,
            on_bad=_ON_BAD.value,
            allow_nucleotides=_ALLOW_NUCLEOTIDES.value,
            num_processes=_NUM_PROCESSES.value or len(os.sched_getaffinity(0)),
        )
    except ValueError as e:
        return _fail(2, str(e))
    report = prepare_lib.prepare(
        _sources(),
        output,
        name=_NAME.value or output.name,
        options=options,
        overwrite=_OVERWRITE.value,
        progress=lambda line: print(printable.plain(line), file=sys.stderr, flush=True),
    )
    print(printable.plain("\n".join(_summary(report, output))))
    return 3 if report.num_bad else 0


def _sources() -> list[input_sources.Source]:
    if _TASK.value or _TFDS.value:
        # Imported here: TensorFlow takes seconds, and FASTA does not need it.
        with requirements.explained_imports("train"):
            from prottrans_jax.data.records import dataset_sources

        if _TFDS.value:
            return dataset_sources.of_tfds(_TFDS.value, _TFDS_DATA_DIR.value)
        return dataset_sources.of_task(_TASK.value or "", _TASK_MODULE.value)
    return [
        input_sources.of_fasta(paths.input_file(path, f"--{flag.name}"), split)
        for flag, split in ((_INPUT, None), (_VALIDATION_INPUT, "validation"))
        for path in command_flags.values_of(flag.value)
    ]


def _summary(report: prepare_lib.Report, folder: paths.Place) -> list[str]:
    seconds = max(report.seconds, 1e-9)
    lines = [
        f"Read {plurals.count(report.records_read, 'record')} with "
        f"{plurals.count(report.residues_read, 'residue')} in {report.seconds:.1f} s: "
        f"{report.records_read / seconds:,.0f} records/s, "
        f"{report.residues_read / seconds:,.0f} residues/s."
    ]
    if report.num_gaps or report.num_stops:
        lines.append(
            f"Removed: {plurals.count(report.num_gaps, 'gap')} ('-', '.') and "
            f"{plurals.count(report.num_stops, 'stop')} ('*') at the end of a sequence."
        )
    for reason, (number, examples) in sorted(report.skipped.items()):
        lines.append(f"Left out {number:,}: {reason}, e.g. {'; '.join(examples)}")
    if report.skipped:
        lines.append(f"All records left out: {folder / prepare_lib.SKIPPED_FILE}")
    if report.manifest.moved_copies:
        lines.append(
            f"Moved {report.manifest.moved_copies:,}: copies of a sequence into the "
            "split of its first record."
        )
    for name, split in report.manifest.splits.items():
        mean = split.num_residues / max(split.num_records, 1)
        lines.append(
            f"{name}: {plurals.count(split.num_records, 'record')}, "
            f"{plurals.count(split.num_residues, 'residue')}, "
            f"mean length {mean:.0f}, longest {split.max_length:,}, "
            f"{plurals.count(len(split.shards), 'shard')}"
        )
    unusual = {
        letter: sum(s.alphabet.get(letter, 0) for s in report.manifest.splits.values())
        for letter in vocabulary.READ_AS_X
    }
    if any(unusual.values()):
        each = ", ".join(f"{number:,} {x}" for x, number in unusual.items() if number)
        lines.append(f"Letters that models read as X: {each}.")
    if report.num_only_x:
        records_of_x = plurals.count(report.num_only_x, "record")
        lines.append(f"Warning: {records_of_x} with no letter but X.")
    for name in ("train", "validation"):
        if name not in report.manifest.splits:
            lines.append(
                f"Warning: there is no split {name!r}. Training needs both: increase "
                "--validation_fraction or set --validation_input."
            )
    lines.append(f"Prepared {folder}")
    return lines


def _verify(folder: paths.Place) -> int:
    problems = store.verify(folder)
    for problem in problems:
        print(printable.plain(problem))
    if problems:
        print(f"Damaged: {len(problems)}. Copy or prepare the folder again.")
        return 3
    print(f"{folder}: all files match their checksums.")
    return 0


def _fail(status: int, message: str) -> int:
    print(printable.plain(f"prepare: {message}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    command_flags.run(main)
