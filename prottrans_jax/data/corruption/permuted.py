"""Corruption for permutation language modelling, the objective of XLNet.

Nothing is hidden in the input. Some residues are predicted in a random order, each from
the context (the residues that are not predicted) and the predicted residues before it
in that order. The feature `factorization_ranks` holds this order, one number per token;
the model derives its attention masks from it.
"""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import ngrams, streams
from prottrans_jax.proteins import vocabulary as vocabulary_lib

CONTEXT = -1  # rank of a token that is not predicted

LAYOUT = streams.Layout(
    length="inputs",
    fields={
        # <pad> is 5 in XLNet's vocabularies.
        "input_tokens": streams.Field(
            np.int32, vocabulary_lib.PROT_XLNET.pad_id, task_feature="inputs"
        ),
        "target_tokens": streams.Field(
            np.int32, vocabulary_lib.PROT_XLNET.pad_id, task_feature="targets"
        ),
        "loss_weights": streams.Field(np.float32, task_feature="loss_weights"),
        "token_types": streams.Field(np.int32, task_feature="token_types"),
        "factorization_ranks": streams.Field(
            np.int32, CONTEXT, task_feature="factorization_ranks"
        ),
    },
)

# Token types of XLNet: first sequence (its <sep> too), second sequence, <cls>.
_CLS_TYPE = 2

# Random streams of a piece's key.
_SIZE, _OFFSET, _PHASE, _RANK = range(4)


@dataclasses.dataclass(frozen=True)
class PermutationTargets:
    """XLNet's partial prediction (Yang et al. 2019, section 2.3 and appendix).

    A piece is `A <sep> <cls>`, as made by ProtXLNet's tokenizer. It is divided into
    stretches of K n residues. In each stretch a run of n consecutive residues at a
    random place is predicted, so 1 / K of all residues. n is from 1 to `max_span` with
    probability proportional to 1 / n, as in XLNet's script, whose options are the
    defaults here. The first stretch begins before the piece, so that all positions are
    equivalent; XLNet's script adds single tokens until exactly 85 of 512 are predicted.
    Special tokens are never predicted. The settings of ProtXLNet are not known.

    Ranks count from 0 in each piece; all orders are equally likely. Token i's query
    sees token j of its piece if j is context or has a lower rank.

    `lanes` makes rows that continue in the next batch, for models with memories: a row
    holds concatenated proteins, and its part of a protein is predicted given the memory
    of the earlier part. XLNet's script remembers one half of each row (`reuse_len`) and
    shows the other half again; here every residue comes once.

    Example (<sep> 4, <cls> 3). The last K is predicted from the context, Y from the
    context and K, A from the context, K and Y.

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_XLNET.encode("MKTAYIAKQRQISFVK").astype(np.uint8)
      >>> keys = np.array([0], np.uint64)
      >>> out = PermutationTargets().corrupt(ids, np.array([16]), keys)
      >>> print(out["input_tokens"])
      [33 24 27 18 32 23 18 24 30 25 30 23 22 31 20 24  4  3]
      >>> print(out["factorization_ranks"])
      [-1 -1 -1  2  1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1  0 -1 -1]
      >>> print(out["token_types"])
      [0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2]
    """

    vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(
        default=vocabulary_lib.PROT_XLNET, repr=False
    )
    inverse_fraction: int = 6
    max_span: int = 5
    lanes: bool = False

    def __post_init__(self):
        for name, least in (("inverse_fraction", 2), ("max_span", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}.")

    @property
    def layouts(self) -> tuple[streams.Layout, ...]:
        """As `streams.Corruption.layouts`."""
        return (LAYOUT,)

    @property
    def in_lanes(self) -> bool:
        """As `streams.Corruption.in_lanes`."""
        return self.lanes

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """As `streams.Corruption.predicted_specials`: none."""
        return ()

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 1"]:
        """As `streams.Corruption.num_tokens`: residues, `<sep>` and `<cls>`."""
        return np.asarray(lengths, np.int64)[:, None] + 2

    def max_residues(self, *capacities: int) -> int:
        """As `streams.Corruption.max_residues`."""
        (length,) = capacities
        return streams.at_least_one(
            length - 2, f"{length} tokens have no room for one residue, <sep> and <cls>"
        )

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: streams.Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> streams.Stream:
        """As `streams.Corruption.corrupt`; leaves the input unchanged."""
        if self.vocabulary.cls_id is None or self.vocabulary.sep_id is None:
            raise ValueError(f"{self.vocabulary.name} has no <cls> and <sep>.")
        lengths = np.asarray(lengths, np.int64)
        total = lengths + 2
        ends = np.cumsum(total)
        tokens = np.full(int(total.sum()), self.vocabulary.sep_id, np.uint8)
        tokens[ends - 1] = self.vocabulary.cls_id
        is_residue = np.ones(len(tokens), bool)
        is_residue[ends - 1] = is_residue[ends - 2] = False
        tokens[is_residue] = residues
        token_types = np.zeros(len(tokens), np.uint8)
        token_types[ends - 1] = _CLS_TYPE

        predicted = self.predicted(lengths, keys)
        ranks = np.full(len(tokens), CONTEXT, np.int32)
        ranks[np.flatnonzero(is_residue)[predicted]] = _ranks(predicted, lengths, keys)
        return streams.Stream(
            LAYOUT,
            total,
            {
                "input_tokens": tokens,
                "target_tokens": tokens,
                "loss_weights": (ranks >= 0).astype(np.float32),
                "token_types": token_types,
                "factorization_ranks": ranks,
            },
        )

    def predicted(
        self, lengths: streams.Lengths, keys: jaxtyping.UInt64[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, " predicted"]:
        """Indices of the predicted residues in the concatenated pieces, ascending."""
        # Enough stretches to cover the piece, even if all have the minimum length and
        # the first one lies before the piece.
        stretches = lengths // self.inverse_fraction + 2
        number = streams.ordinals(stretches)
        piece = np.repeat(np.arange(len(lengths)), stretches)

        def draw(stream: int) -> np.ndarray:
            return random_bits.fold(random_bits.fold(keys, stream)[piece], number)

        size = ngrams.lengths_from(draw(_SIZE), self.max_span)
        stretch = size * self.inverse_fraction
        begins = np.cumsum(stretch) - stretch
        first = np.cumsum(stretches) - stretches
        # A random number of residues is cut off the first stretch.
        phase = random_bits.below(random_bits.fold(keys, _PHASE), stretch[first])
        begins -= np.repeat(begins[first] + phase, stretches)
        offset = random_bits.below(draw(_OFFSET), stretch - size + 1)
        place = np.repeat(begins + offset, size) + streams.ordinals(size)
        place_piece = np.repeat(piece, size)
        inside = (place >= 0) & (place < lengths[place_piece])
        return (place + (np.cumsum(lengths) - lengths)[place_piece])[inside]


def _ranks(
    predicted: np.ndarray, lengths: streams.Lengths, keys: np.ndarray
) -> jaxtyping.Int64[np.ndarray, " predicted"]:
    """Rank of each predicted residue in the random order of its piece."""
    ends = np.cumsum(lengths)
    piece = np.searchsorted(ends, predicted, side="right")
    position = predicted - (ends - lengths)[piece]
    bits = random_bits.fold(random_bits.fold(keys[piece], _RANK), position)
    order = np.lexsort((bits, piece))
    ranks = np.empty(len(predicted), np.int64)
    counts = np.bincount(piece, minlength=len(lengths))
    ranks[order] = streams.ordinals(counts)
    return ranks
