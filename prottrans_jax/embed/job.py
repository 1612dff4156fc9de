"""A FASTA file embedded into an output file, so that no kill loses or doubles work.

  look      reads the input once: counts, checks, duplicates, what is known already
  compute   windows of the input, sorted by length, in batches; results go into shards
  merge     shards and reused vectors, in the order of the input, into the output

Every result is a function of the input and the settings alone: a run that was killed
and goes on writes the same bytes as one that was not.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
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
)
from prottrans_jax.files import ownership, paths, writing
from prottrans_jax.proteins import plurals

_TOO_LONG_FOR_MODEL = "longer than the model has positions for"


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
      What was done. Records left out or cut are in it and in OUTPUT.skipped.tsv.

    Raises:
      fasta.FastaError: The input is odd; says where.
      nucleotides.NucleotidesError: The input holds nucleotides.
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
        code = writing.no_room(error)
        if code is None:
            raise
        raise DiskFullError(
            code,
            f"{os.strerror(code).lower()} at {asked.output.parent}. What was computed "
            f"is kept in {parts.folder}: make room and run the same command again.",
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
        allow_nucleotides=options.allow_nucleotides,
    )
    # Letters that this model has ids for are not read as X.
    report.letters = dataclasses.replace(
        found.letters,
        unusual={
            letter: number
            for letter, number in found.letters.unusual.items()
            if asked.encoder.vocabulary.reads_as_x(letter)
        },
    )
    report.cut, report.limit = found.cut, options.max_length
    _apply_limits(asked, found)
    begin_anew = options.overwrite or not options.resume
    if not begin_anew and (kept := provenance.is_complete(asked, found)) is not None:
        report.skipped, report.kept = found.skipped, kept
        report.reused = len(found.chosen)
        provenance.write_treated(asked, found)
        parts.remove()
        return report
    entries = found.stored_entries()
    known = _known(asked, found)
    on_plan(_figures(asked, found, known.where, parts.find(entries)))
    computing.compute(asked, found, entries, known.where, parts, report, on_progress)
    report.skipped = found.skipped
    report.repeated = int((found.fates == inputs.SAME).sum())
    report.reused = int(known.where.sum())
    report.kept = known.count_others(next(iter(asked.paths)), entries)
    if not known.keeps_others and not options.overwrite:
        before = [path for path in asked.paths.values() if path.exists()]
        numbers = [reuse.count_others(path, entries) for path in before]
        report.dropped = max(numbers, default=0)
    provenance.write_treated(asked, found)
    if known.has_output and known.in_output[found.chosen].all():
        # The output as it is holds all of the input: only what it is known for changes.
        provenance.write(asked, found, kept=report.kept, complete=True)
    else:
        merging.merge(asked, found, entries, known, parts, report.kept)
    known.close()
    parts.remove()
    report.peak_memory_bytes = reports.peak_memory_bytes()
    return report


def _apply_limits(asked: settings.Settings, found: inputs.Inputs) -> None:
    """Refuses, leaves out or cuts what is too long, as `Options.long` says."""
    limit, most = asked.options.max_length, asked.encoder.max_residues
    policy = asked.options.long
    if policy == "error":
        if limit is not None and (most is None or limit < most):
            _refuse_longer(
                found, limit, f"more than --max-length={limit}", "Raise it, or say"
            )
        elif most is not None:
            _refuse_longer(found, most, f"the model has positions for {most:,}", "Say")
        return
    assert limit is not None  # `settings.resolve` has seen to it.
    if policy == "skip":
        found.leave_out(
            found.lengths > limit,
            _TOO_LONG_FOR_MODEL if limit == most else "longer than --max-length",
            lambda p: f"{len(p.residues)} residues, limit {limit}",
        )
        if most is not None:
            found.leave_out(
                found.lengths > most,
                _TOO_LONG_FOR_MODEL,
                lambda p: f"{len(p.residues)} residues, limit {most}",
            )
    elif policy == "truncate":
        found.note_cut(
            found.lengths > limit,
            inputs.TRUNCATED,
            lambda p: f"the first {limit} of {len(p.residues)} residues",
        )
    else:
        found.note_cut(
            found.lengths > limit,
            inputs.CHUNKED,
            lambda p: f"{len(p.residues)} residues in pieces of {limit}",
        )


def _refuse_longer(found: inputs.Inputs, limit: int, what: str, advice: str) -> None:
    """Raises if a record has more residues than `limit`; names the first."""
    chosen = found.fates == inputs.EMBED
    too_long = chosen & (found.lengths > limit)
    if not too_long.any():
        return
    first = next(found.proteins(too_long))
    raise ValueError(
        f"{first.place}: {first.name!r} has {len(first.residues):,} "
        f"residues, {what}; of {plurals.count(int(chosen.sum()), 'protein')} "
        f"{int(too_long.sum()):,} {'is' if too_long.sum() == 1 else 'are'} longer. "
        f"{advice} what to do about them: --long skip, chunk or truncate."
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
    whole = asked.options.resume and len(before) == len(asked.paths)
    return reuse.find(
        found,
        before if whole else {},
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

    longest_id, longest = found.longest_chosen()
    return reports.Plan(
        proteins=int(chosen.sum()),
        residues=int(found.lengths[chosen].sum()),
        longest=longest,
        longest_id=longest_id,
        to_compute=int(missing.sum()),
        to_compute_residues=int(found.lengths[missing].sum()),
        output_bytes=num_bytes(chosen),
        needed_bytes=num_bytes(chosen) + num_bytes(missing),
        free_bytes=shutil.disk_usage(asked.output.parent).free,
        left_out=collections.Counter(s.reason for s in found.skipped),
        cut=collections.Counter(c.action for c in found.cut),
        limit=asked.options.max_length,
    )
