"""Jobs that read a FASTA file and write one output: records, progress, report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time

from prottrans_jax.config import setting_types
from prottrans_jax.embed import inputs, provenance, reports
from prottrans_jax.encoders import frozen_models
from prottrans_jax.files import ownership, paths
from prottrans_jax.proteins import plurals
from prottrans_jax.scoring import infilling, rows, score_files

# Residues of proteins that are scored together, so that batches are full.
_WINDOW_RESIDUES = 1 << 15
_POLICIES = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Options:
    """What becomes of the input's records, and of an existing output.

    Attributes:
      on_bad: "error" or "skip" for records that cannot be used.
      on_duplicate: As in `embed.inputs.scan`.
      long: "error" or "skip" for proteins longer than the model has positions for.
      allow_nucleotides: Whether a file of A, C, G, T, U and N is accepted.
      overwrite: Whether an existing output is replaced.
    """

    on_bad: str = "error"
    on_duplicate: str = "error"
    long: str = "error"
    allow_nucleotides: bool = False
    overwrite: bool = False

    def __post_init__(self):
        for name in ("on_bad", "long"):
            setting_types.check_choice(name, getattr(self, name), _POLICIES)
        setting_types.check_choice(
            "on_duplicate", self.on_duplicate, inputs.ON_DUPLICATE
        )


@dataclasses.dataclass
class Report:
    """Result of a job.

    Attributes:
      output: The file written.
      proteins: Proteins scored.
      residues: Residues of these.
      skipped: Records left out, with reasons.
      letters: Letters that are not among the 20 amino acids.
      seconds: Time of the computation.
    """

    output: paths.Place = None  # type: ignore[assignment]
    proteins: int = 0
    residues: int = 0
    skipped: list[inputs.RecordNote] = dataclasses.field(default_factory=list)
    letters: inputs.Letters = dataclasses.field(default_factory=inputs.Letters)
    seconds: float = 0.0


class Job:
    """Reads proteins, follows the progress, and makes the report.

    Args:
      model: Whose positions limit the length of proteins.
      source: FASTA files, read as one; "-" is standard input.
      output: File to write; its extension is the format.
      options: Policies.
      on_progress: Called after each batch.
    """

    def __init__(
        self,
        model: frozen_models.Model,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        output: str | os.PathLike,
        options: Options | None = None,
        on_progress: Callable[[reports.Progress], None] | None = None,
    ):
        self._limit = rows.max_residues(model)
        self._sources = paths.input_files(source, "source")
        self._output = output
        self._options = options or Options()
        self._on_progress = on_progress or (lambda progress: None)

    @contextlib.contextmanager
    def run(
        self,
        report: Report,
        suffixes: Sequence[str],
        *,
        per_residue: bool,
        row_factor: int = 1,
        marks: bool = False,
    ) -> Iterator["Run"]:
        """Scans the input, and reports what was left out at the end.

        Args:
          report: Is filled; its output is set too.
          suffixes: Extensions that the output may have.
          per_residue: Whether each residue is a row of a batch; else each protein.
          row_factor: Rows of each of these.
          marks: Whether marks of unknown residues are read as X.
        """
        options = self._options
        output = score_files.check(self._output, suffixes, overwrite=options.overwrite)
        files = [x for x in self._sources if x != paths.STANDARD_INPUT]
        ownership.refuse_same(files, [output])
        with tempfile.TemporaryDirectory(prefix="prottrans_jax.") as temporary:
            folder = pathlib.Path(temporary)
            sources = [
                str(inputs.spool(None, folder)) if x == paths.STANDARD_INPUT else x
                for x in self._sources
            ]
            if marks:
                sources = [
                    str(infilling.unmarked_copy(x, _subfolder(folder, number)))
                    for number, x in enumerate(sources)
                ]
            records = inputs.scan(
                sources,
                on_bad=options.on_bad,
                on_duplicate=options.on_duplicate,
                allow_nucleotides=options.allow_nucleotides,
            )
            self._apply_limit(records)
            output.parent.mkdir(parents=True, exist_ok=True)
            report.output = output
            run = Run(report, records, self._on_progress)
            lengths = records.lengths[records.chosen]
            run.set_rows(
                row_factor * int(lengths.sum() if per_residue else len(lengths))
            )
            yield run
            run.report.skipped = records.skipped
            run.report.letters = records.letters
            run.report.seconds = run.seconds
            provenance.write_record_notes(output, records)

    def _apply_limit(self, records: inputs.Inputs) -> None:
        limit = self._limit
        if limit is None:
            return
        too_long = (records.fates == inputs.EMBED) & (records.lengths > limit)
        if self._options.long == "skip":
            records.leave_out(
                too_long,
                "longer than the model has positions for",
                lambda p: f"{len(p.residues)} residues, limit {limit}",
            )
        elif too_long.any():
            first = next(records.proteins(too_long))
            raise ValueError(
                f"{first.place}: {first.name!r} has {len(first.residues):,} residues, "
                f"the model has positions for {limit:,}; "
                f"{plurals.count(int(too_long.sum()), 'protein is', 'proteins are')} "
                "longer. --long skip leaves them out."
            )


class Run:
    """Proteins of a scan, and how many rows of batches are done."""

    def __init__(self, report: Report, records: inputs.Inputs, on_progress):
        self.report = report
        self._records = records
        self._on_progress = on_progress
        self._started = time.perf_counter()
        self._rows = self._of_rows = 0

    @property
    def output(self) -> paths.Place:
        """The file to write."""
        return self.report.output

    @property
    def seconds(self) -> float:
        """Time since the computation began."""
        return time.perf_counter() - self._started

    def proteins(self) -> Iterator[inputs.Protein]:
        """Proteins in order."""
        return self._records.proteins()

    def windows(self) -> Iterator[list[inputs.Protein]]:
        """Proteins in order, several together."""
        window: list[inputs.Protein] = []
        size = 0
        for protein in self.proteins():
            window.append(protein)
            size += len(protein.residues)
            if size >= _WINDOW_RESIDUES:
                yield window
                window, size = [], 0
        if window:
            yield window

    def set_rows(self, rows: int) -> None:
        """Sets how many rows of batches there are in all."""
        self._of_rows = rows

    def add_rows(self, rows: int) -> None:
        """Counts rows of batches as done; reports the progress."""
        self._rows += rows
        rate = self._rows / max(self.seconds, 1e-9)
        self._on_progress(
            reports.Progress(
                self.report.proteins,
                self._rows,
                len(self._records.chosen),
                max(self._of_rows, self._rows),
                self.seconds,
                rate,
                max(self._of_rows - self._rows, 0) / rate,
            )
        )

    def finish(self, proteins: Iterable[inputs.Protein]) -> None:
        """Counts proteins as scored."""
        for protein in proteins:
            self.report.proteins += 1
            self.report.residues += len(protein.residues)


def _subfolder(folder: pathlib.Path, number: int) -> pathlib.Path:
    """A folder for one file: several may have the same name."""
    path = folder / str(number)
    path.mkdir()
    return path
