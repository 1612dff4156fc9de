"""Scores of a FASTA file's proteins, written to a file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
import time

import numpy as np

import prottrans_jax
from prottrans_jax.embed import inputs, provenance, reports
from prottrans_jax.files import ownership, paths
from prottrans_jax.proteins import plurals
from prottrans_jax.scoring import (
    infilling,
    mutations,
    proteingym,
    score_files,
    scorers,
)

# Residues of proteins that are scored together, so that batches are full.
_WINDOW_RESIDUES = 1 << 15
LONG = ("error", "skip")


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
      correlations: (assay, Spearman, variants with a measurement, all variants).
    """

    output: paths.Place
    proteins: int = 0
    residues: int = 0
    skipped: list[inputs.RecordNote] = dataclasses.field(default_factory=list)
    letters: inputs.Letters = dataclasses.field(default_factory=inputs.Letters)
    seconds: float = 0.0
    correlations: list[tuple[str, float, int, int]] = dataclasses.field(
        default_factory=list
    )


class Job:
    """Reads proteins, follows the progress, and makes the report.

    Args:
      scorer: Scores the proteins.
      source: FASTA files, read as one; "-" is standard input.
      output: File to write; its extension is the format.
      options: Policies.
      on_progress: Called after each batch.
    """

    def __init__(
        self,
        scorer: scorers.Scorer,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        output: str | os.PathLike,
        options: Options | None = None,
        on_progress: Callable[[reports.Progress], None] | None = None,
    ):
        self.scorer = scorer
        self._sources = paths.input_files(source, "source")
        self._output = output
        self._options = options or Options()
        self._on_progress = on_progress or (lambda progress: None)

    def pseudo_perplexity(self, *, one_pass: bool = False) -> Report:
        """A table: id, length, scored, log_likelihood, perplexity, likelihood."""
        name = self.scorer.likelihood.name
        if one_pass and not self.scorer.likelihood.is_causal:
            name += ", one pass"
        columns = ("id", "length", "scored", "log_likelihood", "perplexity")
        with (
            self._run(score_files.TABLES, per_residue=not one_pass) as run,
            score_files.table(run.output, (*columns, "likelihood")) as add,
        ):
            for window in run.windows():
                texts = [x.residues.decode() for x in window]
                results = self.scorer.pseudo_perplexity(texts, one_pass=one_pass)
                for protein, result in zip(window, results, strict=True):
                    values = (
                        *(protein.name, len(protein.residues), result.scored),
                        *(result.log_likelihood, result.perplexity),
                    )
                    add(dict(zip(columns, values, strict=True)) | {"likelihood": name})
                run.finish(window)
        return run.report

    def logits(self) -> Report:
        """An array [residues, vocab] for each protein, from one pass without masks."""
        pieces = " ".join(self.scorer.model.vocabulary.pieces)
        with (
            self._run(score_files.ARRAYS, per_residue=False) as run,
            score_files.arrays(run.output, self._about("logits", pieces)) as add,
        ):
            for window in run.windows():
                texts = [x.residues.decode() for x in window]
                for protein, array in zip(
                    window, self.scorer.logits(texts), strict=True
                ):
                    add(protein, array)
                run.finish(window)
        return run.report

    def substitutions(
        self, marginals: str | None = None, *, matrix: bool = False
    ) -> Report:
        """Scores of all 19 substitutions of each residue.

        Args:
          marginals: As in `scorers.Scorer.variants`.
          matrix: Whether a table has a row for each residue with 20 scores. If not,
            it has a row for each variant, as ProteinGym's. Arrays are [residues, 20].
        """
        marginals = marginals or self.scorer.default_marginals
        suffixes = (*score_files.TABLES, *score_files.ARRAYS)
        columns: tuple[str, ...] = ("id", "mutant", "mutated_sequence", "score")
        if matrix:
            columns = ("id", "position", "wild_type", *scorers.LETTERS)
        rows = 19 if marginals == "mutant" else 1
        with self._run(
            suffixes, per_residue=marginals != "wild-type", rows=rows
        ) as run:
            if run.output.suffix.lower() in score_files.ARRAYS:
                about = self._about(f"substitutions, {marginals}", scorers.LETTERS)
                with score_files.arrays(run.output, about) as add_array:
                    for protein in run.proteins():
                        text = protein.residues.decode()
                        add_array(protein, self.scorer.substitutions(text, marginals))
                        run.finish([protein])
                return run.report
            with score_files.table(run.output, columns) as add:
                for protein in run.proteins():
                    text = protein.residues.decode()
                    scores = self.scorer.substitutions(text, marginals)
                    lines = _matrix_rows if matrix else _variant_rows
                    for row in lines(protein.residues, scores):
                        add({"id": protein.name, **row})
                    run.finish([protein])
        return run.report

    def variants(
        self, assays: Sequence[proteingym.Assay], marginals: str | None = None
    ) -> Report:
        """The rows of ProteinGym's files, with the column `score`.

        Args:
          assays: From `proteingym.read`. The wild type is the FASTA's only protein, or
            that whose id is the assay's name. With several assays the first column is
            `assay`.
          marginals: As in `scorers.Scorer.variants`.
        """
        columns = list(dict.fromkeys(c for x in assays for c in x.columns))
        first = ["assay"] if len(assays) > 1 else []
        with self._run(score_files.TABLES, per_residue=False) as run:
            proteins = list(run.proteins())
            work = []
            for assay in assays:
                protein = _wild_type(assay, proteins)
                work.append((assay, protein, assay.mutants(protein.residues)))
                assay.measured()
            run.set_rows(sum(len(parsed) for *_, parsed in work))
            header = [*first, *columns, proteingym.SCORE]
            with score_files.table(run.output, header) as add:
                for assay, protein, parsed in work:
                    text = protein.residues.decode()
                    scores = self.scorer.variants(text, parsed, marginals)
                    for row, score in zip(assay.rows, scores.tolist(), strict=True):
                        own = {"assay": assay.name} if first else {}
                        add(own | row | {proteingym.SCORE: score})
                    measured = assay.measured()
                    if measured is not None:
                        correlation = proteingym.spearman(scores, measured)
                        run.report.correlations.append(
                            (assay.name, *correlation, len(parsed))
                        )
            used = {id(protein): protein for _, protein, _ in work}
            run.finish(list(used.values()))
        return run.report

    def infill(self, top: int = 1) -> Report:
        """A table of the most probable residues for each X, `?`, `_` and `<mask>`."""
        columns = ("id", "position", "rank", "residue", "probability")
        with (
            self._run(score_files.TABLES, per_residue=False, marks=True) as run,
            score_files.table(run.output, columns) as add,
        ):
            for window in run.windows():
                texts = [x.residues.decode() for x in window]
                results = infilling.fill(self.scorer, texts, top)
                for protein, filled in zip(window, results, strict=True):
                    for place in filled:
                        pairs = zip(place.residues, place.probabilities, strict=True)
                        for rank, pair in enumerate(pairs, 1):
                            values = (protein.name, place.position, rank, *pair)
                            add(dict(zip(columns, values, strict=True)))
                run.finish(window)
        return run.report

    def _about(self, what: str, columns: str) -> dict[str, str]:
        model = self.scorer.model
        return {
            "scores": what,
            "columns": columns,
            "likelihood": self.scorer.likelihood.name,
            "model_name": model.name,
            "weights_fingerprint": model.fingerprint,
            "prottrans_version": prottrans_jax.__version__,
        }

    @contextlib.contextmanager
    def _run(
        self,
        suffixes: Sequence[str],
        *,
        per_residue: bool,
        rows: int = 1,
        marks: bool = False,
    ) -> Iterator["_Run"]:
        """Scans the input, and reports what was left out at the end.

        Args:
          suffixes: Extensions that the output may have.
          per_residue: Whether each residue is a row of a batch; else each protein.
          rows: Rows of each of these.
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
            run = _Run(output, records, self._on_progress)
            lengths = records.lengths[records.chosen]
            run.set_rows(rows * int(lengths.sum() if per_residue else len(lengths)))
            self.scorer.on_rows = run.add_rows
            yield run
            run.report.skipped = records.skipped
            run.report.letters = records.letters
            run.report.seconds = run.seconds
            provenance.write_record_notes(output, records)

    def _apply_limit(self, records: inputs.Inputs) -> None:
        limit = self.scorer.max_residues
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


class _Run:
    """Proteins of a scan, and how many rows of batches are done."""

    def __init__(self, output, records: inputs.Inputs, on_progress):
        self.output = output
        self.report = Report(output)
        self._records = records
        self._on_progress = on_progress
        self._started = time.perf_counter()
        self._rows = self._of_rows = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def proteins(self) -> Iterator[inputs.Protein]:
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
        self._of_rows = rows

    def add_rows(self, rows: int) -> None:
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


def _wild_type(
    assay: proteingym.Assay, proteins: Sequence[inputs.Protein]
) -> inputs.Protein:
    if len(proteins) == 1:
        return proteins[0]
    for protein in proteins:
        if assay.name in (protein.key, protein.name):
            return protein
    names = ", ".join(x.name for x in itertools.islice(proteins, 5))
    raise ValueError(
        f"{assay.path}: the FASTA has {plurals.count(len(proteins), 'protein')} "
        f"({names}{', ...' * (len(proteins) > 5)}), none with the id {assay.name!r}. "
        "Give the wild type alone, or name the file after its id."
    )


def _variant_rows(residues: bytes, scores: np.ndarray) -> Iterator[dict]:
    for mutation in mutations.all_single(residues):
        column = scorers.LETTERS.index(mutation.mutant)
        yield {
            "mutant": str(mutation),
            "mutated_sequence": mutations.apply([mutation], residues).decode(),
            "score": float(scores[mutation.position - 1, column]),
        }


def _matrix_rows(residues: bytes, scores: np.ndarray) -> Iterator[dict]:
    for index, row in enumerate(scores):
        yield {
            "position": index + 1,
            "wild_type": chr(residues[index]),
            **dict(zip(scorers.LETTERS, row.tolist(), strict=True)),
        }
