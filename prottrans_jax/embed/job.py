"""A FASTA file embedded into an output file, so that no kill loses or doubles work.

  look      reads the input once: counts, checks, duplicates, what is known already
  compute   windows of the input, sorted by length, in batches; results go into shards
  merge     shards and reused vectors, in the order of the input, into the output

Every result is a function of the input and the settings alone: a run that was killed
and goes on writes the same bytes as one that was not.
"""

from collections.abc import Callable, Sequence
import errno
import os
import shutil
from typing import Any

import numpy as np

from prottrans_jax.embed import (
    computing,
    inputs,
    merging,
    outputs,
    provenance,
    reports,
    reuse,
    settings,
    shards,
    writers,
)
from prottrans_jax.files import ownership, paths


class DiskFullError(OSError):
    """No space left; says what is kept and what to do."""


def embed_fasta(
    encoder: Any,
    source: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: settings.Options | None = None,
    *,
    on_plan: Callable[[reports.Plan], None] | None = None,
    on_progress: Callable[[reports.Progress], None] | None = None,
) -> reports.Report:
    """Embeds FASTA files; goes on where an earlier call was stopped.

    Args:
      encoder: `encoders.Encoder`.
      source: FASTA, plain or compressed, or several in their order, as if they were
        one; "-" is standard input.
      output: File to write, ending in .h5, .npz, .parquet, .zarr, .csv or .tsv.
      options: What to compute.
      on_plan: Called before anything is computed.
      on_progress: Called after each protein, and before each wait for the device.

    Returns:
      What was done. Records left out are in it and in OUTPUT.skipped.tsv.

    Raises:
      fasta.FastaError: The input is odd; says where.
      ValueError: Duplicate ids, proteins over the limit, unknown names.
      locks.LockedError: Another process writes to this output.
      ownership.ForeignError: What is at the output was not made by this program.
      shards.OtherRunError: The output was made with another model or settings.
      DiskFullError: No space left; what was committed stays.
    """
    asked = settings.resolve(encoder, output, options or settings.Options())
    sources = paths.local_inputs(source, "source")
    outputs.refuse_foreign(asked.output, asked.paths.values())
    ownership.refuse_same(
        [path for path in sources if path != paths.STANDARD_INPUT],
        outputs.written(asked.output, asked.paths.values()),
    )
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    parts = shards.Parts(
        asked.output,
        asked.identity,
        outputs=asked.paths,
        fresh=not asked.options.resume,
        overwrite=asked.options.overwrite,
    )
    try:
        return _run(
            asked,
            sources,
            parts,
            on_plan or (lambda plan: None),
            on_progress or (lambda progress: None),
        )
    except OSError as error:
        if not _is_disk_full(error):
            raise
        raise DiskFullError(
            error.errno or errno.ENOSPC,
            f"{_reason(error)} at {asked.output.parent}. What was computed is kept in "
            f"{parts.folder}: make room and run the same command again.",
        ) from error
    except ValueError:
        # A mistake in what was asked or given: no empty folder stays behind.
        if parts.is_empty:
            parts.remove()
        raise
    finally:
        parts.close()


def _run(asked, sources, parts, on_plan, on_progress) -> reports.Report:
    options = asked.options
    report = reports.Report(list(asked.paths.values()))
    found = inputs.look(
        [
            str(inputs.spool(None, parts.folder))
            if path == paths.STANDARD_INPUT
            else path
            for path in sources
        ],
        key_scheme=options.key,
        on_bad=options.on_bad,
        on_duplicate=options.on_duplicate,
    )
    report.gaps, report.stops = found.num_gaps, found.num_stops
    _apply_limits(asked, found)
    if not options.overwrite and provenance.is_complete(asked, found):
        report.skipped = found.skipped
        report.reused = len(found.chosen)
        parts.remove()
        return report
    entries = found.stored_entries()
    known = _known(asked, found)
    on_plan(_figures(asked, found, known.where, parts.find(entries)))
    computing.compute(asked, found, entries, known.where, parts, report, on_progress)
    report.skipped = found.skipped
    report.repeated = int((found.fates == inputs.SAME).sum())
    report.reused = int(known.where.sum())
    provenance.write_skipped(asked, found.skipped)
    # Not if the output as it is holds all, and nothing was computed.
    if not (known.has_output and known.in_output[found.chosen].all()):
        merging.merge(asked, found, entries, known, parts, report)
    known.close()
    parts.remove()
    report.peak_memory_bytes = reports.peak_memory_bytes()
    return report


def _apply_limits(asked: settings.Settings, found: inputs.Inputs) -> None:
    limit = asked.options.max_length
    if limit is not None:
        too_long = (found.fates == inputs.EMBED) & (found.lengths > limit)
        if too_long.any() and asked.options.long == "error":
            worst = next(found.proteins(too_long))
            raise ValueError(
                f"{worst.place}: {worst.name!r} has "
                f"{len(worst.residues):,} residues, more than --max-length={limit} "
                f"({int(too_long.sum())} such in all). Raise it, or say what to do "
                "about them: --long skip, chunk or truncate."
            )
        if asked.options.long == "skip":
            found.leave_out(
                too_long,
                "longer than --max-length",
                lambda p: f"{len(p.residues)} residues, limit {limit}",
            )
    most = asked.encoder.max_residues
    if most is not None and not (asked.cuts and limit and limit <= most):
        found.leave_out(
            found.lengths > most,
            "longer than the model has positions for",
            lambda p: (
                f"{len(p.residues)} residues, the model takes {most}; "
                f"--max-length {most} --long chunk embeds it in pieces"
            ),
        )


def _known(asked: settings.Settings, found: inputs.Inputs) -> reuse.Known:
    """Vectors that need not be computed: of the output as it is, of other files."""
    before = {
        kind: path
        for kind, path in asked.paths.items()
        if path.exists() and not asked.options.overwrite
    }
    for path in before.values():
        shards.refuse_other_run(path, reuse.identity_of(path), asked.identity)
    return reuse.find(
        found,
        before if len(before) == len(asked.paths) else {},
        asked.options.reuse,
        identity=asked.identity,
        kinds=list(asked.paths),
        pool=asked.pool,
        shape=asked.shape,
        lengths=asked.stored_lengths(found.lengths),
    )


def _figures(asked, found, known, places) -> reports.Plan:
    """What there is to do, and the space that it takes."""
    chosen = found.fates == inputs.EMBED
    missing = chosen & ~known & (places[:, 0] < 0)
    lengths = asked.stored_lengths(found.lengths)
    size = int(np.prod(asked.shape, dtype=np.int64))

    def num_bytes(where):
        total = 0
        if "residues" in asked.paths:
            residues = int(lengths[where].sum())
            total += residues * size * asked.dtypes["residues"].itemsize
        if "protein" in asked.paths:
            total += int(where.sum()) * size * asked.dtypes["protein"].itemsize
        return total + 400 * int(where.sum()) * len(asked.paths)

    longest = int(found.lengths[chosen].max()) if chosen.any() else 0
    return reports.Plan(
        proteins=int(chosen.sum()),
        residues=int(found.lengths[chosen].sum()),
        longest=longest,
        longest_id=found.longest if longest else "",
        to_compute=int(missing.sum()),
        to_compute_residues=int(found.lengths[missing].sum()),
        output_bytes=num_bytes(chosen),
        needed_bytes=num_bytes(chosen) + num_bytes(missing),
        free_bytes=shutil.disk_usage(asked.output.parent).free,
    )


def _is_disk_full(error: OSError) -> bool:
    # HDF5 puts the number into its text.
    return error.errno in writers.NO_ROOM or "errno = 28" in str(error)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.ENOSPC).lower()
