"""Corruption for masked language modelling, for BERT, ALBERT and ELECTRA.

Some residues are picked. Each of them becomes `[MASK]`, another amino acid, or stays as
it is; the model predicts all of them. Special tokens are never picked. Random draws
depend only on the key of the piece and the position in it, as in `iid_noise`.
"""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import (
    framing,
    ngrams,
    position_kinds,
    streams,
    substitution,
)
from prottrans_jax.proteins import vocabulary as vocabulary_lib

LAYOUT = streams.Layout(
    length="inputs",
    fields={
        "input_tokens": streams.Field(np.int32, task_feature="inputs"),
        "target_tokens": streams.Field(np.int32, task_feature="targets"),
        "loss_weights": streams.Field(np.float32, task_feature="loss_weights"),
        "token_types": streams.Field(np.int32, task_feature="token_types"),
        "corrupted": streams.Field(np.int32, task_feature="corrupted"),
        "order_targets": streams.Field(np.int32, task_feature="order_targets"),
        "order_weights": streams.Field(np.float32, task_feature="order_weights"),
    },
)

# Random streams of a piece's key.
_PICK, _KIND, _TOKEN, _NGRAM = range(4)


@dataclasses.dataclass(frozen=True)
class TokenMasking:
    """Masking of BERT (Devlin et al. 2019, section 3.1), as for ProtBert.

    Each residue is picked independently with probability 0.15; BERT's script picks
    exactly that share of each piece. Of the picked residues, 80 % become [MASK], 10 %
    another of the 20 amino acids ("a random amino acid different from the one they
    replace", model cards of prot_bert) and 10 % stay. All have weight 1 in the loss.

    `pairs` gives `[CLS] A [SEP] B [SEP]`. The model cards state this form, that there
    was no next-sentence prediction, and that each protein was a document of its own;
    they do not say which two sequences made a pair. Here A and B are the two parts of
    one piece, cut at a random place. They are swapped with `swap_probability`, which is
    the label of sentence-order prediction (Lan et al. 2020, section 3.1). A model may
    ignore it.

    `max_ngram` above 1 picks runs of residues as in ALBERT, see `ngrams`.

    Example ([CLS] 2, [SEP] 3, [MASK] 4):

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_BERT.encode("MKTAYIAKQRQISF").astype(np.uint8)
      >>> print(ids)
      [21 12 15  6 20 11  6 12 18 13 18 11 10 19]
      >>> out = TokenMasking().corrupt(ids, np.array([14]), np.array([25], np.uint64))
      >>> print(out["input_tokens"])  # residues 4, 10 hidden, 11 (I) now G, 0 stays
      [ 2 21 12 15  6  4 11  6 12 18 13  4  7 10 19  3]
      >>> print(out["target_tokens"])
      [ 2 21 12 15  6 20 11  6 12 18 13 18 11 10 19  3]
      >>> print(out["corrupted"])
      [0 3 0 0 0 1 0 0 0 0 0 1 2 0 0 0]
      >>> print(out["loss_weights"])
      [0. 1. 0. 0. 0. 1. 0. 0. 0. 0. 0. 1. 1. 0. 0. 0.]

    As a pair, swapped: the last residue, F, comes first.

      >>> pairs = TokenMasking(pairs=True)
      >>> out = pairs.corrupt(ids, np.array([14]), np.array([4], np.uint64))
      >>> print(out["input_tokens"])
      [ 2  4  3 21 12 15  6 20 11  6 12 18  4 18 11 10  3]
      >>> print(out["token_types"])
      [0 0 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1]
      >>> print(out["order_targets"])
      [1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0]
    """

    vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(
        default=vocabulary_lib.PROT_BERT, repr=False
    )
    noise_density: float = 0.15
    mask_probability: float = 0.8
    random_probability: float = 0.1
    max_ngram: int = 1
    pairs: bool = False
    swap_probability: float = 0.5

    def __post_init__(self):
        for name in ("noise_density", "swap_probability"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1).")
        shares = self.mask_probability, self.random_probability
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ValueError(
                f"mask_probability={shares[0]} and random_probability={shares[1]} are "
                "shares of the picked residues: neither negative, together 1 at most."
            )
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram={self.max_ngram} is not positive.")

    @property
    def layouts(self) -> tuple[streams.Layout, ...]:
        """As `streams.Corruption.layouts`."""
        return (LAYOUT,)

    @property
    def in_lanes(self) -> bool:
        """As `streams.Corruption.in_lanes`."""
        return False

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """As `streams.Corruption.predicted_specials`: none."""
        return ()

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 1"]:
        """As `streams.Corruption.num_tokens`."""
        return framing.num_tokens(lengths, self.pairs)[:, None]

    def max_residues(self, *capacities: int) -> int:
        """As `streams.Corruption.max_residues`."""
        (length,) = capacities
        longest = length - 2
        if self.pairs and longest > 1:
            # Space for the second [SEP]; pieces of one residue have none.
            longest = max(length - 3, 1)
        return streams.at_least_one(
            longest,
            f"{length} tokens have no room for one residue between [CLS] and [SEP]",
        )

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: streams.Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> streams.Stream:
        """As `streams.Corruption.corrupt`."""
        framed = framing.frame(
            residues,
            lengths,
            keys,
            self.vocabulary,
            pairs=self.pairs,
            swap_probability=self.swap_probability,
        )
        position = streams.ordinals(lengths)
        picked = np.flatnonzero(self._pick(position, lengths, framed.parts, keys))
        position = position[picked]
        keys = np.repeat(keys, lengths)[picked]
        originals = residues[picked]

        # Uniform in [0, 2**64): masked below the first limit, kept from the second on.
        kind = random_bits.fold(random_bits.fold(keys, _KIND), position)
        masked = kind < _limit(self.mask_probability)
        kept = kind >= _limit(self.mask_probability + self.random_probability)
        substituted = ~masked & ~kept
        shown = originals.copy()
        shown[masked] = self.vocabulary.mask_id
        bits = random_bits.fold(
            random_bits.fold(keys[substituted], _TOKEN), position[substituted]
        )
        shown[substituted] = substitution.another_amino_acid(
            self.vocabulary, originals[substituted], bits
        )
        at = framed.places[picked]
        inputs = framed.tokens.copy()
        inputs[at] = shown
        corrupted = np.zeros(len(inputs), np.uint8)
        corrupted[at] = np.select(
            [masked, kept],
            [position_kinds.MASKED, position_kinds.KEPT],
            position_kinds.SUBSTITUTED,
        )
        return streams.Stream(
            LAYOUT,
            framed.lengths,
            {
                "input_tokens": inputs,
                "target_tokens": framed.tokens,
                "loss_weights": (corrupted > 0).astype(np.float32),
                "token_types": framed.token_types,
                "corrupted": corrupted,
                "order_targets": framed.order_targets,
                "order_weights": framed.order_weights,
            },
        )

    def _pick(
        self,
        position: np.ndarray,
        lengths: streams.Lengths,
        parts: np.ndarray,
        keys: np.ndarray,
    ) -> jaxtyping.Bool[np.ndarray, " residues"]:
        residue_keys = np.repeat(keys, lengths)
        bits = random_bits.fold(random_bits.fold(residue_keys, _PICK), position)
        if self.max_ngram == 1:
            return bits < random_bits.threshold(self.noise_density)
        sizes = random_bits.fold(random_bits.fold(residue_keys, _NGRAM), position)
        return ngrams.pick(bits, sizes, parts, self.noise_density, self.max_ngram)


def _limit(probability: float) -> np.uint64:
    """As `random_bits.threshold`, but a probability of 1 is allowed."""
    if probability >= 1.0:
        return np.uint64(2**64 - 1)
    return random_bits.threshold(probability)
