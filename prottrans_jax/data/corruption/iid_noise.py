"""Corruptions of T5 with independent noise: encoder inputs and decoder targets.

One NumPy implementation over concatenated pieces serves both `RowLoader` and SeqIO
(`preprocessors`). Random draws depend only on the key of the piece and the position in
it, so a piece is corrupted in the same way in every row, batch and host.

Inputs and targets end with `</s>`, as with SeqIO's `append_eos` and Hugging Face's
tokenizer; `</s>` itself is never corrupted.
"""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import position_kinds, substitution
from prottrans_jax.data.corruption import streams as streams_lib
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
        # The targets shifted by one, so not a feature of SeqIO examples.
        "input_tokens": streams_lib.Field(np.int32),
        "target_tokens": streams_lib.Field(np.int32, task_feature="targets"),
        "loss_weights": streams_lib.Field(
            np.float32, task_feature="targets_loss_weights"
        ),
        "corrupted": streams_lib.Field(np.int32, task_feature="targets_corrupted"),
    },
)

# Random streams of a piece's key.
_NOISE, _KIND, _TOKEN = range(3)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Concatenated pieces of the model's inputs and targets, including `</s>`.

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

        The decoder's input is its targets shifted right by one. Each piece starts with
        pad (0), so that no piece sees the last token of another.
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
    """Shared by all corruptions of T5."""

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
        """As `streams.Corruption.predicted_specials`: none are corrupted."""
        return ()


@dataclasses.dataclass(frozen=True)
class _TokenByToken(EncoderDecoder):
    """Shared by the corruptions that keep the length: target i is residue i."""

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
                "(another of the 20) nor 'all_ids' (any id from 3 on, as in T5)."
            )
        for name in ("noise_density", "random_probability"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1).")

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 2"]:
        """As `streams.Corruption.num_tokens`: residues and `</s>`, in both streams."""
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
        ends = np.cumsum(lengths + 1) - 1  # index of each piece's </s>
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
            substituted = kind < random_bits.threshold(self.random_probability)
            bits = random_bits.fold(
                random_bits.fold(tokens_key[substituted], _TOKEN), position[substituted]
            )
            replacement[substituted] = self._random(originals[substituted], bits)
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
        """Index of each noise token, the key of its piece and its position there."""
        sizes = lengths + 1
        starts = ends - lengths
        # fold(fold(key, _NOISE), position), with one multiplication per piece.
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
    """Corruption of ProtT5: T5's iid_15_r10s90_f (from the model cards).

    Each residue is noise with probability 0.15. Of the noise, 90 % becomes
    `<extra_id_0>` (127, always the same) and 10 % another of the 20 amino acids, drawn
    uniformly. The target is the whole original. No noise is left unchanged.

    `random_tokens="all_ids"` draws like the T5 library, uniformly from [3, 128): four
    of five draws are then sentinels. Which one the published run used is not known.

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
    """The target is the whole original, but only hidden positions have a loss.

    All noise becomes `<extra_id_0>`, as in the authors' EvoTuning notebook. With
    `random_probability` above 0, substituted residues have a loss too. Intact
    positions and `</s>` have weight 0, so that copying earns nothing.

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
        raise ValueError(
            f"{vocabulary.name} has no </s>: it is not a vocabulary for T5."
        )
    return vocabulary.eos_id


def at_least_one(residues: int, inputs_length: int, targets_length: int) -> int:
    """Returns `residues`; ValueError if rows of these lengths cannot hold one."""
    return streams_lib.at_least_one(
        residues,
        f"{inputs_length} inputs and {targets_length} targets have no room for one "
        "residue and </s>",
    )
