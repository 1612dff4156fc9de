"""What is hidden from the encoder and what the decoder must say: T5's objectives.

One implementation in NumPy, over the residues of many pieces laid end to end, serves
both the index path (`loader`) and SeqIO (`preprocessors`). Random draws depend on the
key of the piece and the position in it alone, so a piece is corrupted the same way in
whatever row, batch or host it turns up.

Both inputs and targets end with `</s>`, as SeqIO's `append_eos` and Hugging Face's
tokenizer have it; `</s>` itself is never corrupted.
"""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data.corruption import position_kinds, substitution
from prottrans_jax.data.corruption import streams as streams_lib
from prottrans_jax.data.rows import random_bits
from prottrans_jax.proteins import vocabulary as vocabulary_lib

Lengths = streams_lib.Lengths

INPUTS = streams_lib.Layout(
    length="inputs",
    prefix="encoder_",
    fields={"input_tokens": streams_lib.Field(np.int32, task_feature="inputs")},
)
TARGETS = streams_lib.Layout(
    length="targets",
    prefix="decoder_",
    fields={
        # The targets one place later: it needs no name of its own in an example.
        "input_tokens": streams_lib.Field(np.int32),
        "target_tokens": streams_lib.Field(np.int32, task_feature="targets"),
        "loss_weights": streams_lib.Field(
            np.float32, task_feature="targets_loss_weights"
        ),
        "corrupted": streams_lib.Field(np.int32, task_feature="targets_corrupted"),
    },
)

# Streams of random bits within the key of a piece.
_NOISE, _KIND, _TOKEN = range(3)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Pieces end to end, `</s>` included, as the model sees them.

    Attributes:
      inputs: ids for the encoder, [input_tokens] uint8.
      input_lengths: tokens of each piece in `inputs`, [pieces].
      targets: ids for the decoder to predict, [target_tokens] uint8.
      target_lengths: tokens of each piece in `targets`, [pieces].
      loss_weights: weight of each target in the loss, [target_tokens] float32.
      corrupted: `position_kinds` of the targets, [target_tokens] uint8.
    """

    inputs: np.ndarray
    input_lengths: Lengths
    targets: np.ndarray
    target_lengths: Lengths
    loss_weights: np.ndarray
    corrupted: np.ndarray

    @property
    def streams(self) -> tuple[streams_lib.Stream, ...]:
        """As `streams.Pieces.streams`.

        The decoder's input is its targets one place later, from pad (0) at the start of
        each piece: no piece sees another's last token.
        """
        shifted = np.empty_like(self.targets)
        shifted[1:] = self.targets[:-1]
        shifted[np.cumsum(self.target_lengths) - self.target_lengths] = 0
        values = {
            "input_tokens": shifted,
            "target_tokens": self.targets,
            "loss_weights": self.loss_weights,
            "corrupted": self.corrupted,
        }
        return (
            streams_lib.Stream(
                INPUTS, self.input_lengths, {"input_tokens": self.inputs}
            ),
            streams_lib.Stream(TARGETS, self.target_lengths, values),
        )


class EncoderDecoder:
    """Shared by all objectives of T5."""

    @property
    def layouts(self) -> tuple[streams_lib.Layout, ...]:
        """As `streams.Corruption.layouts`."""
        return INPUTS, TARGETS

    @property
    def in_lanes(self) -> bool:
        """As `streams.Corruption.in_lanes`."""
        return False

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """As `streams.Corruption.predicted_specials`: none where corrupted."""
        return ()


@dataclasses.dataclass(frozen=True)
class _TokenByToken(EncoderDecoder):
    """Shared by the objectives that keep the length: target i is residue i."""

    vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(
        default=vocabulary_lib.PROT_T5, repr=False
    )
    noise_density: float = 0.15
    random_probability: float = 0.1
    random_tokens: str = "amino_acids"

    def __post_init__(self):
        if self.random_tokens not in ("amino_acids", "all_ids"):
            raise ValueError(
                f"random_tokens={self.random_tokens!r} is neither 'amino_acids' "
                "(another of the 20) nor 'all_ids' (any id from 3 on, as T5 draws)."
            )
        for name in ("noise_density", "random_probability"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1).")

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 2"]:
        """As `streams.Corruption.num_tokens`: one more than residues, in both."""
        return np.repeat(np.asarray(lengths, np.int64)[:, None] + 1, 2, axis=1)

    def max_residues(self, *capacities: int) -> int:
        """As `streams.Corruption.max_residues`."""
        inputs_length, targets_length = capacities
        return at_least_one(
            min(inputs_length, targets_length) - 1, inputs_length, targets_length
        )

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> Corrupted:
        """As `streams.Corruption.corrupt`."""
        eos = eos_id(self.vocabulary)
        ends = np.cumsum(lengths + 1) - 1  # of each piece, where its </s> stands
        targets = np.full(len(residues) + len(lengths), eos, np.uint8)
        is_residue = np.ones(len(targets), bool)
        is_residue[ends] = False
        targets[is_residue] = residues
        inputs = targets.copy()
        corrupted = np.zeros(len(targets), np.uint8)

        tokens, tokens_key, position = self._noise(targets, ends, lengths, keys)
        originals = targets[tokens]
        replacement = np.full(
            len(tokens), self.vocabulary.sentinel_id(0), targets.dtype
        )
        if self.random_probability:
            kind = random_bits.fold(random_bits.fold(tokens_key, _KIND), position)
            chosen = kind < random_bits.threshold(self.random_probability)
            bits = random_bits.fold(
                random_bits.fold(tokens_key[chosen], _TOKEN), position[chosen]
            )
            replacement[chosen] = self._random(originals[chosen], bits)
        inputs[tokens] = replacement
        corrupted[tokens] = np.where(
            replacement == self.vocabulary.sentinel_id(0),
            position_kinds.MASKED,
            # A draw over all ids may return the token itself.
            np.where(
                replacement == originals,
                position_kinds.INTACT,
                position_kinds.SUBSTITUTED,
            ),
        )
        return Corrupted(
            inputs=inputs,
            input_lengths=lengths + 1,
            targets=targets,
            target_lengths=lengths + 1,
            loss_weights=self._loss_weights(corrupted),
            corrupted=corrupted,
        )

    def _noise(
        self, targets: np.ndarray, ends: np.ndarray, lengths: Lengths, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of the noise tokens; of each, its piece's key and its position."""
        sizes = lengths + 1
        starts = ends - lengths
        # fold(fold(key, _NOISE), position), with the product of fold() taken per piece.
        counter = np.arange(1, len(targets) + 1, dtype=np.uint64)
        counter *= random_bits.GOLDEN
        base = random_bits.fold(keys, _NOISE)
        base -= starts.astype(np.uint64) * random_bits.GOLDEN
        counter += np.repeat(base, sizes)
        is_noise = random_bits.mix(counter) < random_bits.threshold(self.noise_density)
        is_noise[ends] = False
        tokens = np.flatnonzero(is_noise)
        piece = np.searchsorted(ends, tokens)
        return tokens, keys[piece], tokens - starts[piece]

    def _random(self, originals: np.ndarray, bits: np.ndarray) -> np.ndarray:
        if self.random_tokens == "all_ids":
            # T5's noise_token_to_random_token: uniform over [3, vocab_size).
            return 3 + random_bits.below(bits, self.vocabulary.size - 3)
        return substitution.another_amino_acid(self.vocabulary, originals, bits)

    def _loss_weights(self, corrupted: np.ndarray) -> np.ndarray:
        return np.ones(len(corrupted), np.float32)


@dataclasses.dataclass(frozen=True)
class IidDenoise(_TokenByToken):
    """ProtT5's own objective: T5's iid_15_r10s90_f (facts of the model cards).

    Each residue is noise with probability 0.15. Of the noise, 90 % becomes
    `<extra_id_0>` (127), always the same, 10 % a different one of the 20 amino acids,
    uniformly. Target: the whole original. No share of the noise is kept as it is.

    `random_tokens="all_ids"` draws as the T5 library does, uniformly from [3, 128):
    four of five draws are then sentinels. What the published run did is not known.

    Example (ids of ProtT5: M 19, K 14, T 11, A 3, Y 18):

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQR").astype(np.uint8)
      >>> print(ids)
      [19 14 11  3 18 12  3 14 16  8]
      >>> corruption = IidDenoise()
      >>> out = corruption.corrupt(ids, np.array([10]), np.array([18], np.uint64))
      >>> print(out.inputs)  # residues 3 and 6 hidden, residue 7 (K) now F
      [ 19  14  11 127  18  12 127  15  16   8   1]
      >>> print(out.targets)
      [19 14 11  3 18 12  3 14 16  8  1]
      >>> print(out.corrupted)
      [0 0 0 1 0 0 1 2 0 0 0]
    """


@dataclasses.dataclass(frozen=True)
class MaskedReconstruction(_TokenByToken):
    """The whole original as target, but loss only where the input was hidden.

    All noise becomes `<extra_id_0>`, as in the authors' EvoTuning notebook; with
    `random_probability` above 0 substituted residues are learned too. Targets that
    were left intact, and `</s>`, weigh nothing: none of the loss is copying.

    Example:

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQR").astype(np.uint8)
      >>> corruption = MaskedReconstruction()
      >>> out = corruption.corrupt(ids, np.array([10]), np.array([21], np.uint64))
      >>> print(out.inputs)
      [ 19  14 127   3  18  12   3 127  16   8   1]
      >>> print(out.targets)
      [19 14 11  3 18 12  3 14 16  8  1]
      >>> print(out.loss_weights)
      [0. 0. 1. 0. 0. 0. 0. 1. 0. 0. 0.]
    """

    random_probability: float = 0.0

    def _loss_weights(self, corrupted: np.ndarray) -> np.ndarray:
        return (corrupted > 0).astype(np.float32)


def eos_id(vocabulary: vocabulary_lib.Vocabulary) -> int:
    """Id of `</s>`, which every piece of T5 ends with."""
    if vocabulary.eos_id is None:
        raise ValueError(f"{vocabulary.name} has no </s>: it is no vocabulary for T5.")
    return vocabulary.eos_id


def at_least_one(residues: int, inputs_length: int, targets_length: int) -> int:
    """`residues`, if rows of these lengths hold one at least."""
    return streams_lib.at_least_one(
        residues,
        f"{inputs_length} inputs and {targets_length} targets have no room for one "
        "residue and </s>",
    )
