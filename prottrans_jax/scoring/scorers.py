"""Scores of proteins and their variants by a frozen model.

  model = prottrans_jax.load_model("prot_bert")
  scorer = Scorer(model)
  scorer.pseudo_perplexity(["PRTEINO", "SEQWENCE"])
  scorer.variants("PRTEINO", ["P1A", "P1A:R2C"])
  scorer.substitutions("PRTEINO")  # [length, 20]

Amino acids are in the order of `LETTERS`. Positions in mutations are counted from 1,
indices of arrays from 0.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from prottrans_jax.embed import sequence_input
from prottrans_jax.encoders import frozen_models
from prottrans_jax.kernels import frozen
from prottrans_jax.proteins import vocabulary as vocabularies
from prottrans_jax.scoring import likelihoods, mutations, rows

LETTERS = vocabularies.STANDARD
_INDEX = {letter: i for i, letter in enumerate(LETTERS)}
_Progress = Callable[[int], None]


class Perplexity(NamedTuple):
    """Likelihood of a protein's residues.

    Attributes:
      log_likelihood: Sum of the natural logarithms of the residues' probabilities.
      scored: Number of these residues: the 20 amino acids; X and letters read as X are
        context only.
    """

    log_likelihood: float
    scored: int

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / scored); NaN if no residue is scored."""
        if not self.scored:
            return math.nan
        return math.exp(-self.log_likelihood / self.scored)


class Masks(NamedTuple):
    """Residues of one row to hide and predict at the same time.

    Attributes:
      residues: The protein, upper case.
      indices: Indices of these residues, from 0.
    """

    residues: bytes
    indices: tuple[int, ...]


class Scorer:
    """Scores proteins with one likelihood of a model.

    Args:
      model: From `prottrans_jax.load_model`.
      likelihood: Name of a likelihood, see `likelihoods`; None: the model's usual one.
      max_tokens: Most tokens of a batch, with padding; None: depends on the device.
      on_rows: Called with the number of rows that a batch has completed.

    Raises:
      ValueError: The model has no such likelihood; says what is missing.
    """

    def __init__(
        self,
        model: frozen_models.Model,
        likelihood: str | None = None,
        *,
        max_tokens: int | None = None,
        on_rows: _Progress | None = None,
    ):
        self.model = model
        self.likelihood, self._params = likelihoods.choose(model, likelihood)
        ids = model.vocabulary.byte_table[np.frombuffer(LETTERS.encode(), np.uint8)]
        self._columns = jnp.asarray(ids.astype(np.int32))
        self._rows = rows.Rows(self.likelihood, self._params, max_tokens)
        self.on_rows = on_rows or (lambda number: None)

    @property
    def max_residues(self) -> int | None:
        """Longest protein the model has positions for; None if there is no limit."""
        return rows.max_residues(self.model)

    @property
    def default_marginals(self) -> str:
        """Kind of the scores of variants unless another one is chosen."""
        return self.likelihood.marginals[0]

    def logits(
        self, sequences: Iterable[str]
    ) -> list[Float[np.ndarray, "length vocab"]]:
        """Logits of every piece at every residue, from one pass without masks.

        For "replaced" [length, 1], the logit that the residue was replaced.

        Args:
          sequences: Proteins, as in `frozen_models.Encoder.embed`.
        """
        residues = self._all_residues(sequences)
        if isinstance(self.likelihood, likelihoods.Replaced):
            return [x[:, None] for x in self._run_whole(_replaced, residues)]
        self._refuse_without_single_pass("logits")
        return self._run_whole(_one_pass, residues)

    def amino_acid_logits(
        self, sequences: Iterable[str]
    ) -> list[Float[np.ndarray, "length 20"]]:
        """`logits` of the 20 amino acids alone, in the order of `LETTERS`.

        Args:
          sequences: Proteins, as in `frozen_models.Encoder.embed`.
        """
        columns = np.asarray(self._columns)
        return [x[:, columns] for x in self.logits(sequences)]

    def log_probabilities(
        self, sequences: Iterable[str], *, one_pass: bool = False
    ) -> list[Float[np.ndarray, "length 20"]]:
        """Log probability of each amino acid at each residue; see `likelihoods`.

        Args:
          sequences: Proteins, as in `frozen_models.Encoder.embed`.
          one_pass: Whether to estimate them in one pass without masks. Left-to-right
            likelihoods take one pass anyway, and are exact.

        Raises:
          ValueError: The likelihood has no probabilities, or cannot be computed so.
        """
        return self._log_probabilities(self._all_residues(sequences), one_pass)

    def pseudo_perplexity(
        self, sequences: Iterable[str], *, one_pass: bool = False
    ) -> list[Perplexity]:
        """Likelihood of each protein, one residue at a time.

        With left-to-right likelihoods it is the probability of the protein; with the
        others a pseudo-likelihood (Salazar et al. 2020), the sum over residues of their
        log probability given all other residues.

        Args:
          sequences: Proteins, as in `frozen_models.Encoder.embed`.
          one_pass: As in `log_probabilities`.
        """
        residues = self._all_residues(sequences)
        matrices = self._log_probabilities(residues, one_pass)
        return [_perplexity(*pair) for pair in zip(residues, matrices, strict=True)]

    def substitutions(
        self, sequence: str, marginals: str | None = None
    ) -> Float[np.ndarray, "length 20"]:
        """Score of every substitution of one residue.

        Args:
          sequence: The wild type.
          marginals: As in `variants`.

        Returns:
          Entry [i, a] is the score of amino acid a instead of residue i; 0 for the wild
          type, NaN in the row of a residue that is not one of the 20 amino acids.
        """
        (residues,) = self._all_residues([sequence])
        marginals = self._marginals(marginals)
        if marginals != "mutant":
            (matrix,) = self._log_probabilities([residues], marginals == "wild-type")
            return relative_to_wild_type(matrix, residues)
        scores = np.full((len(residues), len(LETTERS)), np.nan, np.float32)
        single = mutations.all_single(residues)
        values = self._mutant_scores(residues, [(mutation,) for mutation in single])
        for mutation, value in zip(single, values, strict=True):
            scores[mutation.position - 1, _INDEX[mutation.mutant]] = value
        for index, letter in enumerate(residues.decode()):
            if letter in _INDEX:
                scores[index, _INDEX[letter]] = 0.0
        return scores

    def variants(
        self,
        sequence: str,
        mutants: Iterable[str | Sequence[mutations.Mutation]],
        marginals: str | None = None,
    ) -> Float[np.ndarray, " variants"]:
        """Scores of variants; higher is closer to what the model expects.

        Args:
          sequence: The wild type.
          mutants: For example "A1C", or "A1C:D2E" for two mutations.
          marginals: How a mutation is scored. The score of several mutations is the sum
            of their scores, except with "mutant".

            "masked": log p(mutant) - log p(wild type), the residue masked and all
            others those of the wild type (Meier et al. 2021).
            "wild-type": the same from one pass over the wild type, unmasked.
            "mutant": the whole variant is read. Left-to-right: log p(variant) - log
            p(wild type). ELECTRA's discriminator: the logit "replaced" of the wild
            type's residues minus that of the variant's, summed over the mutations.

            None: the first of these that the likelihood has.

        Raises:
          ValueError: A mutation does not fit the sequence; names both.
        """
        (residues,) = self._all_residues([sequence])
        parsed = [
            mutations.parse(x, residues, repr(x)) if isinstance(x, str) else tuple(x)
            for x in mutants
        ]
        marginals = self._marginals(marginals)
        if marginals == "mutant":
            return self._mutant_scores(residues, parsed)
        if marginals == "masked" and not self.likelihood.is_causal:
            # Only the mutated residues are masked.
            matrix = np.full((len(residues), len(LETTERS)), np.nan, np.float32)
            indices = sorted({x.position - 1 for several in parsed for x in several})
            items = [Masks(residues, (index,)) for index in indices]
            for index, row in zip(indices, self.masked(items), strict=True):
                matrix[index] = row[0]
        else:
            (matrix,) = self._log_probabilities([residues], True)
        scores = relative_to_wild_type(matrix, residues)
        totals = [
            sum(float(scores[x.position - 1, _INDEX[x.mutant]]) for x in several)
            for several in parsed
        ]
        return np.array(totals, np.float32)

    def masked(self, items: Sequence[Masks]) -> list[Float[np.ndarray, "masks 20"]]:
        """Log probabilities of hidden residues; each item is a row of a batch.

        Args:
          items: Residues to hide, the same number in every item.
        """
        offset = len(self.likelihood.prefix)
        positions = np.array([x.indices for x in items], np.int32) + offset
        call = functools.partial(
            _masked, self.likelihood, self._params, columns=self._columns
        )
        return self._rows.run(
            [item.residues for item in items],
            lambda tokens, segments, chosen: call(tokens, segments, positions[chosen]),
            self.on_rows,
        )

    def _log_probabilities(
        self, residues: Sequence[bytes], one_pass: bool
    ) -> list[Float[np.ndarray, "length 20"]]:
        if isinstance(self.likelihood, likelihoods.Replaced):
            raise ValueError(
                f"{self.model.name} is a discriminator: it tells replaced residues "
                "from others and has no probabilities, which its generator has. It can "
                "score variants and substitutions."
            )
        if one_pass or self.likelihood.is_causal:
            self._refuse_without_single_pass("one pass")
            call = functools.partial(_one_pass_log_probabilities, columns=self._columns)
            return self._run_whole(call, residues)
        items = [Masks(x, (i,)) for x in residues for i in range(len(x))]
        vectors = iter(self.masked(items))
        return [np.concatenate([next(vectors) for _ in x]) for x in residues]

    def _mutant_scores(self, residues, parsed) -> Float[np.ndarray, " variants"]:
        proteins = [residues, *(mutations.apply(x, residues) for x in parsed)]
        if isinstance(self.likelihood, likelihoods.Replaced):
            wild_type, *variants = self._run_whole(_replaced, proteins)
            return np.array(
                [
                    sum(float((wild_type - x)[m.position - 1]) for m in several)
                    for x, several in zip(variants, parsed, strict=True)
                ],
                np.float32,
            )
        for several in parsed:
            mutations.refuse_unknown_wild_type(several)
        matrices = self._log_probabilities(proteins, True)
        wild_type, *totals = [
            _perplexity(*pair).log_likelihood
            for pair in zip(proteins, matrices, strict=True)
        ]
        return np.array(totals, np.float32) - np.float32(wild_type)

    def _run_whole(self, call, residues):
        """One pass over each protein; keeps the results at its residues."""
        offset = len(self.likelihood.prefix)
        results = self._rows.run(
            residues,
            lambda tokens, segments, _: call(
                self.likelihood, self._params, tokens, segments
            ),
            self.on_rows,
        )
        return [
            x[offset : offset + len(protein)]
            for x, protein in zip(results, residues, strict=True)
        ]

    def _marginals(self, marginals: str | None) -> str:
        known = self.likelihood.marginals
        if marginals is None:
            return known[0]
        if marginals not in known:
            raise ValueError(
                f"marginals={marginals!r}: the likelihood {self.likelihood.name!r} of "
                f"{self.model.name} has {' and '.join(map(repr, known))}."
            )
        return marginals

    def _refuse_without_single_pass(self, what: str) -> None:
        if type(self.likelihood).one_pass is likelihoods.Likelihood.one_pass:
            hint = ""
            if isinstance(self.likelihood, likelihoods.Permutation):
                hint = " Its likelihood 'left-to-right' has one."
            if isinstance(self.likelihood, likelihoods.Spans):
                hint = " Its likelihood 'denoising' has one."
            raise ValueError(
                f"{what}: the likelihood {self.likelihood.name!r} of {self.model.name} "
                f"has no single pass.{hint}"
            )

    def check_length(self, what: str, residues: bytes | bytearray) -> None:
        """Raises ValueError if the model has no positions for all residues."""
        limit = self.max_residues
        if limit is not None and len(residues) > limit:
            raise ValueError(
                f"{what} has {len(residues):,} residues; the model has positions for "
                f"{limit:,}. Cut it."
            )

    def _all_residues(self, sequences: Iterable[str]) -> list[bytes]:
        residues = []
        for number, sequence in enumerate(sequence_input.in_order(sequences)):
            what = f"sequence {number}"
            residues.append(sequence_input.residues_of(what, sequence))
            self.check_length(what, residues[-1])
        return residues


def relative_to_wild_type(
    log_probabilities: Float[np.ndarray, "length 20"], residues: bytes
) -> Float[np.ndarray, "length 20"]:
    """Each log probability minus that of the wild type's residue; NaN without one."""
    indices = letter_indices(residues)
    known = indices >= 0
    wild_type = np.take_along_axis(
        log_probabilities, np.maximum(indices, 0)[:, None], axis=1
    )
    return np.where(known[:, None], log_probabilities - wild_type, np.float32(np.nan))


def letter_indices(residues: bytes) -> Int[np.ndarray, " length"]:
    """Index of each residue in `LETTERS`; -1 for other letters."""
    return np.array([_INDEX.get(chr(byte), -1) for byte in residues], np.int64)


def _perplexity(residues: bytes, log_probabilities: np.ndarray) -> Perplexity:
    indices = letter_indices(residues)
    scored = np.flatnonzero(indices >= 0)
    values = log_probabilities[scored, indices[scored]].astype(np.float64)
    return Perplexity(float(values.sum()), len(scored))


# The wild type of a scan is one protein: its masked copies share one compiled shape.
@functools.partial(jax.jit, static_argnums=0)
def _masked(likelihood, params, tokens, segments, positions, *, columns):
    with frozen.scope():
        logits = rows.bounded(likelihood, tokens).masked(
            params, tokens, segments, positions
        )
    return jax.nn.log_softmax(logits.astype(jnp.float32))[..., columns]


@functools.partial(jax.jit, static_argnums=0)
def _one_pass(likelihood, params, tokens, segments):
    with frozen.scope():
        logits = rows.bounded(likelihood, tokens).one_pass(params, tokens, segments)
    return logits.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _one_pass_log_probabilities(likelihood, params, tokens, segments, *, columns):
    logits = _one_pass(likelihood, params, tokens, segments)
    return jax.nn.log_softmax(logits)[..., columns]


@functools.partial(jax.jit, static_argnums=0)
def _replaced(likelihood, params, tokens, segments):
    with frozen.scope():
        model = rows.bounded(likelihood, tokens)
        return model.replaced_logits(params, tokens, segments)
