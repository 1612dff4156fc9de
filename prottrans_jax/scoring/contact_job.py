"""Contacts of a FASTA file's proteins, written to a file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

import prottrans_jax
from prottrans_jax.embed import inputs, reports
from prottrans_jax.encoders import frozen_models
from prottrans_jax.files import paths
from prottrans_jax.scoring import (
    contact_maps,
    contacts,
    fasta_job,
    score_files,
    scorers,
)


@dataclasses.dataclass
class ContactReport(fasta_job.Report):
    """Result of a job.

    Attributes:
      precision: Mean over proteins, and their number, by label; see
        `contact_maps.precision`.
      without_map: Proteins without known contacts to compare with or to fit.
    """

    precision: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    without_map: list[str] = dataclasses.field(default_factory=list)


class ContactJob:
    """Predicts contacts of the proteins of FASTA files, or fits a regression to them.

    Args:
      model: The model.
      source: FASTA files, read as one; "-" is standard input.
      output: File to write; its extension is the format.
      options: Policies.
      on_progress: Called after each batch.
      max_tokens: Most tokens of a batch of the Jacobian.
    """

    def __init__(
        self,
        model: frozen_models.Model,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        output: str | os.PathLike,
        options: fasta_job.Options | None = None,
        on_progress: Callable[[reports.Progress], None] | None = None,
        *,
        max_tokens: int | None = None,
    ):
        self.report = ContactReport()
        self._model = model
        self._max_tokens = max_tokens
        self._job = fasta_job.Job(model, source, output, options, on_progress)

    def predict(
        self,
        weights: contacts.Regression | None = None,
        references: Mapping[str, np.ndarray] | None = None,
    ) -> ContactReport:
        """Writes a map for each protein, or a row for each pair, best pairs first.

        Args:
          weights: Regression on attention maps; None: the categorical Jacobian.
          references: Known contacts or distances by key, to compare with.
        """
        suffixes = (*score_files.TABLES, *score_files.ARRAYS)
        found: dict[str, list[float]] = {}
        scorer = None
        if weights is None:
            scorer = scorers.Scorer(self._model, max_tokens=self._max_tokens)
            contacts.check_bidirectional(scorer)
        per_residue, factor = weights is None, len(scorers.LETTERS)
        with self._job.run(
            self.report,
            suffixes,
            per_residue=per_residue,
            row_factor=factor if per_residue else 1,
        ) as run:
            if scorer is not None:
                scorer.on_rows = run.add_rows
            with _writer(run.output, self._about(weights)) as add:
                for protein in run.proteins():
                    sequence = protein.residues.decode()
                    if scorer is None:
                        assert weights is not None
                        features = contacts.attention_features(self._model, sequence)
                        scores = weights(features).astype(np.float32)
                        run.add_rows(1)
                    else:
                        changes = contacts.jacobian(scorer, sequence)
                        scores = contacts.jacobian_contacts(changes)
                    add(protein, scores)
                    if references is not None:
                        self._compare(protein, scores, references, found)
                    run.finish([protein])
        for label, values in found.items():
            self.report.precision[label] = float(np.mean(values)), len(values)
        return self.report

    def fit(self, references: Mapping[str, np.ndarray]) -> ContactReport:
        """Writes the weights of a regression on attention maps.

        Args:
          references: Known contacts or distances by key.
        """
        features, truths, masks = [], [], []
        with self._job.run(self.report, (".npz",), per_residue=False) as run:
            for protein in run.proteins():
                pair = self._known(protein, references)
                if pair is not None:
                    sequence = protein.residues.decode()
                    features.append(contacts.attention_features(self._model, sequence))
                    truths.append(pair[0])
                    masks.append(pair[1])
                    run.finish([protein])
                run.add_rows(1)
            if not features:
                raise ValueError("No protein of the input has known contacts in --fit.")
            contacts.fit(features, truths, masks).save(run.output)
        return self.report

    def _known(self, protein: inputs.Protein, references: Mapping[str, np.ndarray]):
        for name in (protein.key, protein.name):
            if name in references:
                return contact_maps.known_contacts(
                    references[name], len(protein.residues), f"the map {name!r}"
                )
        self.report.without_map.append(protein.name)
        return None

    def _compare(self, protein, scores, references, found) -> None:
        pair = self._known(protein, references)
        if pair is None:
            return
        for label, value in contact_maps.precision(scores, *pair).items():
            if not np.isnan(value):  # No pairs of this range.
                found.setdefault(label, []).append(value)

    def _about(self, weights: contacts.Regression | None) -> dict[str, Any]:
        return {
            "scores": "contacts, "
            + ("categorical Jacobian" if weights is None else "attention regression"),
            "model_name": self._model.name,
            "weights_fingerprint": self._model.fingerprint,
            "prottrans_version": prottrans_jax.__version__,
        }


@contextlib.contextmanager
def _writer(
    output: paths.Place, about: Mapping[str, str]
) -> Iterator[Callable[[inputs.Protein, np.ndarray], None]]:
    """Yields a function that adds the map of a protein."""
    if output.suffix.lower() in score_files.ARRAYS:
        with score_files.arrays(output, about) as add:
            yield add
        return
    columns = ("id", "i", "j", "residue_i", "residue_j", "score")
    with score_files.table(output, columns) as add_row:

        def add_pairs(protein: inputs.Protein, scores: np.ndarray) -> None:
            rows, pairs = np.triu_indices(len(scores), contacts.MIN_SEPARATION)
            letters = protein.residues.decode()
            for at in np.argsort(-scores[rows, pairs], kind="stable"):
                i, j = int(rows[at]), int(pairs[at])
                values = (protein.name, i + 1, j + 1, letters[i], letters[j])
                row = dict(zip(columns, values, strict=False))
                add_row(row | {"score": float(scores[i, j])})

        yield add_pairs
