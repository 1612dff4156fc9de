"""T5's span corruption: spans move from the input to the target."""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import iid_noise, position_kinds, streams
from prottrans_jax.proteins import vocabulary as vocabulary_lib

# Random streams of a piece's key; `iid_noise` uses 0 to 2.
_NOISE_SPANS, _REST_SPANS = 3, 4


@dataclasses.dataclass(frozen=True)
class SpanCorruption(iid_noise.EncoderDecoder):
    """T5's span corruption (Raffel et al. 2020, section 3.1.4).

    Counts depend only on the length, as in `random_spans_noise_mask` of the T5 library
    (rounding in float32, half to even): noise = round(0.15 length), clipped to 1 ..
    length - 1; spans = max(1, round(noise / mean_span_length)). Noise and the rest are
    each cut into that many non-empty spans, all ways equally likely. They alternate,
    starting with the rest. Span k becomes `<extra_id_k>` (127 - k) in the inputs; the
    targets are `<extra_id_0>` span 0 `<extra_id_1>` span 1 ... `</s>`.

    A piece of one residue has no noise: its target is `<extra_id_0> </s>`, as in T5.

    Example (`<extra_id_0>` 127, `<extra_id_1>` 126):

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_T5.encode("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ")
      >>> ids = ids.astype(np.uint8)
      >>> corruption = SpanCorruption(mean_span_length=3.0)
      >>> out = corruption.corrupt(ids, np.array([33]), np.array([4], np.uint64))
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
    ) -> tuple[streams.Lengths, streams.Lengths]:
        """Noise tokens and noise spans of pieces of `lengths` residues."""
        lengths = np.asarray(lengths, np.int64)
        padded = np.maximum(lengths, 2)
        noise = np.round(padded.astype(np.float32) * np.float32(self.noise_density))
        noise = np.clip(noise.astype(np.int64), 1, padded - 1)
        spans = np.round(noise.astype(np.float32) / np.float32(self.mean_span_length))
        spans = np.maximum(spans.astype(np.int64), 1)
        # Alternation needs at least as many other residues as spans.
        spans = np.minimum(spans, padded - noise)
        return np.where(lengths < 2, 0, noise), np.where(lengths < 2, lengths, spans)

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 2"]:
        """As `streams.Corruption.num_tokens`."""
        lengths = np.asarray(lengths, np.int64)
        noise, spans = self.counts(lengths)
        in_inputs = np.where(lengths < 2, 0, spans)
        return np.stack([lengths - noise + in_inputs + 1, noise + spans + 1], axis=1)

    def max_residues(self, *capacities: int) -> int:
        """As `streams.Corruption.max_residues`; the sentinels must suffice."""
        inputs_length, targets_length = capacities
        limit = 2 * (inputs_length + targets_length)
        lengths = np.arange(limit + 1)
        fits = (self.num_tokens(lengths) <= [inputs_length, targets_length]).all(1)
        fits &= self.counts(lengths)[1] <= self.vocabulary.num_sentinels
        # All shorter pieces fit too. `fits` is not monotonic, because of the rounding.
        longest = limit if fits.all() else int(np.argmin(fits)) - 1
        return iid_noise.at_least_one(longest, inputs_length, targets_length)

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: streams.Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> iid_noise.Corrupted:
        """As `streams.Corruption.corrupt`."""
        noise, spans = self.counts(lengths)
        if spans.size and spans.max() > self.vocabulary.num_sentinels:
            raise ValueError(
                f"{lengths[spans.argmax()]} residues make {spans.max()} spans, "
                f"but {self.vocabulary.name} has {self.vocabulary.num_sentinels} "
                "sentinels. Cut into shorter pieces."
            )
        has_noise = lengths >= 2
        # A piece is spans of (rest, sentinel, noise), then </s>. With fewer than two
        # residues it is one span, with empty parts omitted.
        spans = np.maximum(spans, 1)
        ends = np.cumsum(spans)
        runs = np.zeros((int(spans.sum()), 4), np.int64)
        piece = np.repeat(np.arange(len(lengths)), spans)
        runs[:, 0] = runs[:, 1] = np.minimum(lengths, 1)[piece]
        inside = has_noise[piece]
        rest = lengths - noise
        runs[inside, 0] = _segment(
            rest[has_noise], spans[has_noise], keys[has_noise], _REST_SPANS
        )
        runs[inside, 2] = _segment(
            noise[has_noise], spans[has_noise], keys[has_noise], _NOISE_SPANS
        )
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
        tokens[is_eos] = iid_noise.eos_id(self.vocabulary)
        # The only residue of a piece is not hidden, so the inputs have no sentinel.
        shown = is_sentinel.copy()
        shown[is_sentinel] = np.repeat(inside, runs[:, 1])
        in_targets = ~is_rest
        num_tokens = self.num_tokens(lengths)
        return iid_noise.Corrupted(
            inputs=tokens[is_rest | shown | is_eos],
            input_lengths=num_tokens[:, 0],
            targets=tokens[in_targets],
            target_lengths=num_tokens[:, 1],
            loss_weights=np.ones(int(in_targets.sum()), np.float32),
            corrupted=np.where(
                is_noise[in_targets], position_kinds.MASKED, position_kinds.INTACT
            ).astype(np.uint8),
        )


def _segment(
    items: streams.Lengths,
    segments: streams.Lengths,
    keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    stream: int,
) -> jaxtyping.Int64[np.ndarray, " segments"]:
    """Cuts `items` of each piece into `segments` non-empty parts, uniformly at random.

    Returns:
      Lengths of the parts, piece by piece.
    """
    # Cuts at those of the items - 1 places that have the smallest random numbers. All
    # pieces are sorted at once by piece (20 bits), random bits (28) and place (16), so
    # that ties are resolved in the same way on every machine.
    places = items - 1
    if len(items) >= 1 << 20 or (items.size and items.max() >= 1 << 16):
        raise ValueError(
            f"{len(items)} pieces of up to {items.max()} residues at once; at most "
            f"{(1 << 20) - 1} of {(1 << 16) - 1}."
        )
    place = streams.ordinals(places)
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
