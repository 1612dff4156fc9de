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

from prottrans_jax import vocabulary as vocabulary_lib
from prottrans_jax.data import random_bits, substitution
from prottrans_jax.data import streams as streams_lib

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

# What a target token is to the encoder (feature `decoder_corrupted`).
INTACT, MASKED, SUBSTITUTED = 0, 1, 2

# Streams of random bits within the key of a piece.
_NOISE, _KIND, _TOKEN, _NOISE_SPANS, _REST_SPANS = range(5)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Pieces end to end, `</s>` included, as the model sees them.

    Attributes:
      inputs: ids for the encoder, [input_tokens] uint8.
      input_lengths: tokens of each piece in `inputs`, [pieces].
      targets: ids for the decoder to predict, [target_tokens] uint8.
      target_lengths: tokens of each piece in `targets`, [pieces].
      loss_weights: weight of each target in the loss, [target_tokens] float32.
      corrupted: INTACT, MASKED or SUBSTITUTED, [target_tokens] uint8.
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


class _EncoderDecoder:
    """Shared by all objectives of T5."""

    @property
    def layouts(self) -> tuple[streams_lib.Layout, ...]:
        """As `streams.Objective.layouts`."""
        return INPUTS, TARGETS

    @property
    def in_lanes(self) -> bool:
        """As `streams.Objective.in_lanes`."""
        return False


@dataclasses.dataclass(frozen=True)
class _TokenByToken(_EncoderDecoder):
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
        """As `streams.Objective.num_tokens`: one more than residues, in both."""
        return np.repeat(np.asarray(lengths, np.int64)[:, None] + 1, 2, axis=1)

    def max_residues(self, inputs_length: int, targets_length: int) -> int:
        """As `streams.Objective.max_residues`."""
        return _at_least_one(
            min(inputs_length, targets_length) - 1, inputs_length, targets_length
        )

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> Corrupted:
        """As `streams.Objective.corrupt`."""
        eos = _eos_id(self.vocabulary)
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
            MASKED,
            # A draw over all ids may return the token itself.
            np.where(replacement == originals, INTACT, SUBSTITUTED),
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

      >>> from prottrans_jax import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQR").astype(np.uint8)
      >>> print(ids)
      [19 14 11  3 18 12  3 14 16  8]
      >>> objective = IidDenoise()
      >>> out = objective.corrupt(ids, np.array([10]), np.array([18], np.uint64))
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

      >>> from prottrans_jax import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQR").astype(np.uint8)
      >>> objective = MaskedReconstruction()
      >>> out = objective.corrupt(ids, np.array([10]), np.array([21], np.uint64))
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


@dataclasses.dataclass(frozen=True)
class SpanCorruption(_EncoderDecoder):
    """T5's span corruption (Raffel et al. 2020, section 3.1.4).

    Counts are functions of the length alone, as `random_spans_noise_mask` of the T5
    library has them (rounding in float32, half to even): noise = round(0.15 length),
    but from 1 to length - 1; spans = max(1, round(noise / mean_span_length)). Noise and
    the rest are cut into that many non-empty spans each, all ways equally likely, and
    alternate, the rest first. Span k becomes `<extra_id_k>` (127 - k) in the inputs;
    the targets are `<extra_id_0>` span 0 `<extra_id_1>` span 1 ... `</s>`.

    A piece of one residue has no noise: its target is `<extra_id_0> </s>`, as in T5.

    Example (`<extra_id_0>` 127, `<extra_id_1>` 126):

      >>> from prottrans_jax import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ")
      >>> ids = ids.astype(np.uint8)
      >>> objective = SpanCorruption(mean_span_length=3.0)
      >>> out = objective.corrupt(ids, np.array([33]), np.array([4], np.uint64))
      >>> print(out.inputs)  # FSRQ and, 10 residues on, the last Q are cut out
      [ 19  14  11   3  18  12   3  14  16   8  16  12   7  15   6  14   7  20
       127   4   9   9   8   4   5   4  12   9   6 126   1]
      >>> print(out.targets)
      [127  15   7   8  16 126  16   1]
    """

    vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(
        default=vocabulary_lib.PROT_T5, repr=False
    )
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def counts(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> tuple[Lengths, Lengths]:
        """Noise tokens and noise spans of pieces of `lengths` residues."""
        lengths = np.asarray(lengths, np.int64)
        padded = np.maximum(lengths, 2)
        noise = np.round(padded.astype(np.float32) * np.float32(self.noise_density))
        noise = np.clip(noise.astype(np.int64), 1, padded - 1)
        spans = np.round(noise.astype(np.float32) / np.float32(self.mean_span_length))
        spans = np.maximum(spans.astype(np.int64), 1)
        # With fewer residues left than spans there is no way to alternate.
        spans = np.minimum(spans, padded - noise)
        return np.where(lengths < 2, 0, noise), np.where(lengths < 2, lengths, spans)

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 2"]:
        """As `streams.Objective.num_tokens`."""
        lengths = np.asarray(lengths, np.int64)
        noise, spans = self.counts(lengths)
        in_inputs = np.where(lengths < 2, 0, spans)
        return np.stack([lengths - noise + in_inputs + 1, noise + spans + 1], axis=1)

    def max_residues(self, inputs_length: int, targets_length: int) -> int:
        """As `streams.Objective.max_residues`; the sentinels suffice for it."""
        limit = 2 * (inputs_length + targets_length)
        lengths = np.arange(limit + 1)
        fits = (self.num_tokens(lengths) <= [inputs_length, targets_length]).all(1)
        fits &= self.counts(lengths)[1] <= self.vocabulary.num_sentinels
        # The longest up to which all fit: rounding makes lengths fall now and then.
        longest = limit if fits.all() else int(np.argmin(fits)) - 1
        return _at_least_one(longest, inputs_length, targets_length)

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> Corrupted:
        """As `streams.Objective.corrupt`."""
        noise, spans = self.counts(lengths)
        if spans.size and spans.max() > self.vocabulary.num_sentinels:
            raise ValueError(
                f"{lengths[spans.argmax()]} residues make {spans.max()} spans, "
                f"{self.vocabulary.name} has {self.vocabulary.num_sentinels} "
                "sentinels. Cut into shorter pieces."
            )
        many = lengths >= 2
        # A piece is spans of (rest, sentinel, noise), then </s>. One of fewer than two
        # residues is a single span that lacks what it has nothing to fill with.
        spans = np.maximum(spans, 1)
        ends = np.cumsum(spans)
        runs = np.zeros((int(spans.sum()), 4), np.int64)
        piece = np.repeat(np.arange(len(lengths)), spans)
        runs[:, 0] = runs[:, 1] = np.minimum(lengths, 1)[piece]
        inside = many[piece]
        rest = lengths - noise
        runs[inside, 0] = _segment(rest[many], spans[many], keys[many], _REST_SPANS)
        runs[inside, 2] = _segment(noise[many], spans[many], keys[many], _NOISE_SPANS)
        runs[ends - 1, 3] = 1

        kind = np.repeat(np.tile(np.arange(4), len(runs)), runs.reshape(-1))
        is_rest, is_sentinel, is_noise, is_eos = (kind == k for k in range(4))
        tokens = np.empty(len(kind), np.uint8)
        tokens[is_rest | is_noise] = residues
        # Numbered within the piece, ids counting down from <extra_id_0>.
        number = np.arange(len(runs)) - (ends - spans)[piece]
        tokens[is_sentinel] = np.repeat(
            self.vocabulary.sentinel_id(0) - number, runs[:, 1]
        )
        tokens[is_eos] = _eos_id(self.vocabulary)
        # T5 shows the only residue of a piece: nothing is hidden, nothing marks it.
        shown = is_sentinel.copy()
        shown[is_sentinel] = np.repeat(inside, runs[:, 1])
        in_targets = ~is_rest
        num_tokens = self.num_tokens(lengths)
        return Corrupted(
            inputs=tokens[is_rest | shown | is_eos],
            input_lengths=num_tokens[:, 0],
            targets=tokens[in_targets],
            target_lengths=num_tokens[:, 1],
            loss_weights=np.ones(int(in_targets.sum()), np.float32),
            corrupted=np.where(is_noise, MASKED, INTACT)[in_targets].astype(np.uint8),
        )


def _segment(
    items: Lengths,
    segments: Lengths,
    keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    stream: int,
) -> jaxtyping.Int64[np.ndarray, " segments"]:
    """Cuts `items` of each piece into `segments` non-empty parts, all ways alike.

    Returns:
      Lengths of the parts, piece after piece.
    """
    # Of the items - 1 places to cut at, those with the smallest random numbers. One
    # sort for all: piece (20 bits), random (28), place (16), so that ties are settled
    # alike on every machine.
    places = items - 1
    if len(items) >= 1 << 20 or (items.size and items.max() >= 1 << 16):
        raise ValueError(
            f"{len(items)} pieces of up to {items.max()} residues at once; at most "
            f"{(1 << 20) - 1} of {(1 << 16) - 1}."
        )
    place = streams_lib.ordinals(places)
    piece = np.repeat(np.arange(len(items)), places)
    bits = random_bits.fold(random_bits.fold(keys, stream)[piece], place)
    sortable = piece.astype(np.uint64) << np.uint64(44)
    sortable |= (bits >> np.uint64(36)) << np.uint64(16)
    sortable |= place.astype(np.uint64)
    sortable.sort()
    taken = sortable[place < np.repeat(segments - 1, places)]
    begins = np.cumsum(items) - items
    cuts = begins[taken >> np.uint64(44)] + 1
    cuts += (taken & np.uint64((1 << 16) - 1)).astype(np.int64)
    is_first = np.zeros(int(items.sum()) + 1, bool)
    is_first[begins] = is_first[cuts] = is_first[-1] = True
    return np.diff(np.flatnonzero(is_first))


def _eos_id(vocabulary: vocabulary_lib.Vocabulary) -> int:
    if vocabulary.eos_id is None:
        raise ValueError(f"{vocabulary.name} has no </s>: it is no vocabulary for T5.")
    return vocabulary.eos_id


def _at_least_one(residues: int, inputs_length: int, targets_length: int) -> int:
    return streams_lib.at_least_one(
        residues,
        f"{inputs_length} inputs and {targets_length} targets have no room for one "
        "residue and </s>",
    )
