"""Scores of a FASTA file's proteins, written to a file."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import os
from typing import Any

import numpy as np

import prottrans_jax
from prottrans_jax.embed import inputs, reports
from prottrans_jax.proteins import plurals
from prottrans_jax.scoring import (
    fasta_job,
    infilling,
    mutations,
    proteingym,
    score_files,
    scorers,
)


@dataclasses.dataclass
class ScoreReport(fasta_job.Report):
    """Result of a job.

    Attributes:
      correlations: (assay, Spearman, variants with a measurement, all variants).
    """

    correlations: list[tuple[str, float, int, int]] = dataclasses.field(
        default_factory=list
    )


class ScoreJob:
    """Scores the proteins of FASTA files; each method writes the output.

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
        options: fasta_job.Options | None = None,
        on_progress: Callable[[reports.Progress], None] | None = None,
    ):
        self.scorer = scorer
        self.report = ScoreReport()
        self._job = fasta_job.Job(scorer.model, source, output, options, on_progress)

    def pseudo_perplexity(self, *, one_pass: bool = False) -> ScoreReport:
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
        return self.report

    def logits(self) -> ScoreReport:
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
        return self.report

    def substitutions(
        self, marginals: str | None = None, *, matrix: bool = False
    ) -> ScoreReport:
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
        factor = 19 if marginals == "mutant" else 1
        with self._run(
            suffixes, per_residue=marginals != "wild-type", row_factor=factor
        ) as run:
            if run.output.suffix.lower() in score_files.ARRAYS:
                about = self._about(f"substitutions, {marginals}", scorers.LETTERS)
                with score_files.arrays(run.output, about) as add_array:
                    for protein in run.proteins():
                        text = protein.residues.decode()
                        add_array(protein, self.scorer.substitutions(text, marginals))
                        run.finish([protein])
                return self.report
            with score_files.table(run.output, columns) as add:
                for protein in run.proteins():
                    text = protein.residues.decode()
                    scores = self.scorer.substitutions(text, marginals)
                    lines = _matrix_rows if matrix else _variant_rows
                    for row in lines(protein.residues, scores):
                        add({"id": protein.name, **row})
                    run.finish([protein])
        return self.report

    def variants(
        self, assays: Sequence[proteingym.Assay], marginals: str | None = None
    ) -> ScoreReport:
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
                        self.report.correlations.append(
                            (assay.name, *correlation, len(parsed))
                        )
            used = {id(protein): protein for _, protein, _ in work}
            run.finish(list(used.values()))
        return self.report

    def infill(self, top: int = 1) -> ScoreReport:
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
        return self.report

    @contextlib.contextmanager
    def _run(self, suffixes: Sequence[str], **options: Any) -> Iterator[fasta_job.Run]:
        with self._job.run(self.report, suffixes, **options) as run:
            self.scorer.on_rows = run.add_rows
            yield run

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
