"""Embeds FASTA files into an output file; a killed job resumes without losing work.

  scan      reads the input once: counts, checks, duplicates
  reuse     looks up vectors in the existing output and in other files
  compute   runs windows of the input, sorted by length, in batches, into shards
  merge     writes shards and reused vectors, in the order of the input, to the output

Every result is a function of the input and the settings alone: a run that was killed
and resumed writes the same bytes as an uninterrupted one.
"""

import collections
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import shutil

import numpy as np

from prottrans_jax.embed import (
    computing,
    formats,
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
    """No space left on the disk; the message names what is kept and what to do."""


def embed_fasta(
    encoder: settings.Encoder,
    source: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: settings.Options | None = None,
    *,
    on_plan: Callable[[reports.Plan], None] | None = None,
    on_progress: Callable[[reports.Progress], None] | None = None,
) -> reports.Report:
    """Embeds FASTA files; resumes an earlier call that was stopped.

    Args:
      encoder: `encoders.frozen_models.Encoder`.
      source: FASTA, plain or compressed, or several, treated as one input; "-" is
        standard input.
      output: File to write, ending in .h5, .npz, .parquet, .zarr, .csv or .tsv.
      options: Options of the job.
      on_plan: Called before the computation.
      on_progress: Called after each protein, and before each wait for the device.

    Returns:
      A report. It and OUTPUT.skipped.tsv name the records that are left out or cut.

    Raises:
      fasta_problems.FastaError: A record cannot be used; names file and line.
      nucleotides.NucleotidesError: The input holds nucleotides.
      ValueError: Duplicate ids, proteins over the limit, unknown names.
      locks.LockedError: Another process writes to this output.
      ownership.ForeignError: A file at the output was not made by this program.
      shards.OtherRunError: The output was made with another model or settings.
      DiskFullError: No space left; committed shards are kept.
    """
    job_settings = settings.resolve(encoder, output, options or settings.Options())
    sources = paths.input_files(source, "source")
    outputs.refuse_foreign(job_settings.output, job_settings.paths.values())
    ownership.refuse_same(
        [path for path in sources if path != paths.STANDARD_INPUT],
        outputs.written(job_settings.output, job_settings.paths.values()),
    )
    job_settings.output.parent.mkdir(parents=True, exist_ok=True)
    parts = shards.Parts(
        job_settings.output,
        job_settings.identity,
        outputs=job_settings.paths,
        fresh=not job_settings.options.resume,
        overwrite=job_settings.options.overwrite,
    )
    try:
        return _run(
            job_settings,
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
            f"{os.strerror(code).lower()} at {parts.work.parent}. Computed "
            f"vectors are kept in {parts.folder}: free some space and run the same "
            "command again.",
        ) from error
    except ValueError:
        # A user's mistake in settings or input: remove the empty folder.
        if parts.is_empty:
            parts.remove()
        raise
    finally:
        parts.close()


def _run(job_settings, sources, parts, on_plan, on_progress) -> reports.Report:
    with contextlib.ExitStack() as copies:
        return _run_with(job_settings, sources, parts, copies, on_plan, on_progress)


def _run_with(
    job_settings, sources, parts, copies, on_plan, on_progress
) -> reports.Report:
    options = job_settings.options
    report = reports.Report(list(job_settings.paths.values()))
    records = inputs.scan(
        [
            str(inputs.spool(None, parts.work))
            if path == paths.STANDARD_INPUT
            else path
            for path in sources
        ],
        key_scheme=options.key,
        on_bad=options.on_bad,
        on_duplicate=options.on_duplicate,
        allow_nucleotides=options.allow_nucleotides,
    )
    # Count only letters that this model reads as X.
    report.letters = dataclasses.replace(
        records.letters,
        unusual={
            letter: number
            for letter, number in records.letters.unusual.items()
            if job_settings.encoder.vocabulary.reads_as_x(letter)
        },
    )
    report.cut, report.limit = records.cut, options.max_length
    _apply_limits(job_settings, records)
    ignores_existing = options.overwrite or not options.resume
    if (
        not ignores_existing
        and (kept := provenance.is_complete(job_settings, records)) is not None
    ):
        report.skipped, report.kept = records.skipped, kept
        report.reused = len(records.chosen)
        provenance.write_record_notes(job_settings.output, records)
        parts.remove()
        return report
    entries = records.stored_entries()
    reusable = _find_reusable(job_settings, records, copies)
    places = parts.find(entries)
    on_plan(_make_plan(job_settings, records, reusable.where, places, parts.work))
    computing.compute(
        job_settings, records, entries, reusable.where, parts, report, on_progress
    )
    report.skipped = records.skipped
    report.repeated = int((records.fates == inputs.SAME).sum())
    report.reused = int(reusable.where.sum())
    report.kept = reusable.count_others(next(iter(job_settings.paths)), entries)
    if not reusable.keeps_others and not options.overwrite:
        before = [path for path in job_settings.paths.values() if path.exists()]
        numbers = [reuse.count_others(path, entries) for path in before]
        report.dropped = max(numbers, default=0)
    provenance.write_record_notes(job_settings.output, records)
    if reusable.has_output and reusable.in_output[records.chosen].all():
        # The output already holds all of the input: only OUTPUT.json changes.
        provenance.write(job_settings, records, kept=report.kept, complete=True)
    else:
        merging.merge(job_settings, records, entries, reusable, parts, report.kept)
    reusable.close()
    parts.remove()
    report.peak_memory_bytes = reports.peak_memory_bytes()
    return report


def _apply_limits(job_settings: settings.Settings, records: inputs.Inputs) -> None:
    """Applies the policy `Options.long` to proteins over the limit."""
    limit, most = job_settings.options.max_length, job_settings.encoder.max_residues
    policy = job_settings.options.long
    if policy == "error":
        if limit is not None and (most is None or limit < most):
            _refuse_longer(
                records, limit, f"more than --max-length={limit}", "Raise it, or choose"
            )
        elif most is not None:
            _refuse_longer(
                records, most, f"the model has positions for {most:,}", "Choose"
            )
        return
    assert limit is not None  # `settings.resolve` sets it.
    if policy == "skip":
        records.leave_out(
            records.lengths > limit,
            _TOO_LONG_FOR_MODEL if limit == most else "longer than --max-length",
            lambda p: f"{len(p.residues)} residues, limit {limit}",
        )
        if most is not None:
            records.leave_out(
                records.lengths > most,
                _TOO_LONG_FOR_MODEL,
                lambda p: f"{len(p.residues)} residues, limit {most}",
            )
    elif policy == "truncate":
        records.note_cut(
            records.lengths > limit,
            inputs.TRUNCATED,
            lambda p: f"the first {limit} of {len(p.residues)} residues",
        )
    else:
        records.note_cut(
            records.lengths > limit,
            inputs.CHUNKED,
            lambda p: f"{len(p.residues)} residues in pieces of {limit}",
        )


def _refuse_longer(records: inputs.Inputs, limit: int, what: str, advice: str) -> None:
    """Raises if a record has more residues than `limit`; names the first one."""
    chosen = records.fates == inputs.EMBED
    too_long = chosen & (records.lengths > limit)
    if not too_long.any():
        return
    first = next(records.proteins(too_long))
    raise ValueError(
        f"{first.place}: {first.name!r} has {len(first.residues):,} "
        f"residues, {what}; of {plurals.count(int(chosen.sum()), 'protein')} "
        f"{int(too_long.sum()):,} {'is' if too_long.sum() == 1 else 'are'} longer. "
        f"{advice} what to do with them: --long skip, chunk or truncate."
    )


def _find_reusable(
    job_settings: settings.Settings,
    records: inputs.Inputs,
    copies: contextlib.ExitStack,
) -> reuse.Reusable:
    """Finds vectors that exist: in the existing output and in `Options.reuse`.

    Files in buckets are copied to this machine until `copies` closes.
    """
    before = {
        kind: copies.enter_context(formats.local_copy(path))
        for kind, path in job_settings.paths.items()
        if path.exists() and not job_settings.options.overwrite
    }
    for kind, path in before.items():
        shards.refuse_other_run(
            job_settings.paths[kind], reuse.identity_of(path), job_settings.identity
        )
    whole = job_settings.options.resume and len(before) == len(job_settings.paths)
    return reuse.find(
        records,
        before if whole else {},
        [
            copies.enter_context(formats.local_copy(path))
            for path in job_settings.options.reuse
        ],
        identity=job_settings.identity,
        kinds=list(job_settings.paths),
        pool=job_settings.pool,
        shape=job_settings.shape,
        lengths=job_settings.stored_lengths(records.lengths),
    )


def _make_plan(job_settings, records, reusable, places, work) -> reports.Plan:
    """The amount of work, and the disk space that it needs."""
    chosen = records.fates == inputs.EMBED
    missing = chosen & ~reusable & (places[:, 0] < 0)
    lengths = job_settings.stored_lengths(records.lengths)
    size = int(np.prod(job_settings.shape, dtype=np.int64))

    def num_bytes(where):
        total = 0
        if "residues" in job_settings.paths:
            residues = int(lengths[where].sum())
            total += residues * size * job_settings.dtypes["residues"].itemsize
        if "protein" in job_settings.paths:
            total += int(where.sum()) * size * job_settings.dtypes["protein"].itemsize
        return total + 400 * int(where.sum()) * len(job_settings.paths)

    longest_id, longest = records.longest_chosen()
    return reports.Plan(
        proteins=int(chosen.sum()),
        residues=int(records.lengths[chosen].sum()),
        longest=longest,
        longest_id=longest_id,
        to_compute=int(missing.sum()),
        to_compute_residues=int(records.lengths[missing].sum()),
        output_bytes=num_bytes(chosen),
        needed_bytes=num_bytes(chosen) + num_bytes(missing),
        free_bytes=shutil.disk_usage(work).free,
        left_out=collections.Counter(s.reason for s in records.skipped),
        cut=collections.Counter(c.action for c in records.cut),
        limit=job_settings.options.max_length,
    )
