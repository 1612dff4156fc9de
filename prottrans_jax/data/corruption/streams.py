"""The `Corruption` protocol: pieces of proteins in, streams of tokens out.

A corruption is the half of a pre-training objective that runs on the host. It gives
the number of tokens of a piece in each of its streams, and turns residues into these
tokens.

A stream holds the tokens of many pieces end to end, with one value of each feature per
token. T5 has two streams (inputs and targets), all other families one. Rows, batches
and SeqIO features follow from the layouts of the streams; no other code depends on the
model family.
"""

from collections.abc import Mapping
import dataclasses
from typing import Protocol

import jaxtyping
import numpy as np

from prottrans_jax.proteins import vocabulary as vocabulary_lib

Lengths = jaxtyping.Int64[np.ndarray, " pieces"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A feature of a stream.

    Attributes:
      dtype: in a batch.
      fill: value where there is no token.
      task_feature: name in SeqIO examples; "" if it is not part of them.
    """

    dtype: np.typing.DTypeLike
    fill: int = 0
    task_feature: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Features that share a length.

    Attributes:
      length: name of that length in `feature_lengths`, e.g. "inputs".
      fields: by name. Every stream also has `segment_ids` (0 for padding, else the
        number of the piece, from 1) and `positions` (from 0 in each piece).
      prefix: of the names of all features in a batch.
    """

    length: str
    fields: Mapping[str, Field]
    prefix: str = ""

    @property
    def features(self) -> dict[str, Field]:
        """Every feature of a batch by its full name."""
        own = {
            **self.fields,
            "segment_ids": Field(np.int32),
            "positions": Field(np.int32),
        }
        return {self.prefix + name: field for name, field in own.items()}


@dataclasses.dataclass(frozen=True)
class Stream:
    """Concatenated pieces.

    Attributes:
      layout: describes the fields in `values`.
      lengths: tokens of each piece.
      values: of every field, [tokens].
    """

    layout: Layout
    lengths: Lengths
    values: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """Values of one field."""
        return self.values[name]

    @property
    def streams(self) -> tuple["Stream", ...]:
        """As `Pieces.streams`: only this stream."""
        return (self,)

    def take(self, first: Lengths, count: Lengths) -> "Stream":
        """The `count` tokens from number `first` on, for each piece."""
        begins = np.cumsum(self.lengths) - self.lengths + first
        tokens = _ranges(begins, count)
        return Stream(
            self.layout, count, {name: v[tokens] for name, v in self.values.items()}
        )


class Pieces(Protocol):
    """Corrupted pieces, returned by `Corruption.corrupt`."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """One for each layout of the corruption."""


class Corruption(Protocol):
    """How residues are hidden and framed by special tokens.

    An implementation is a frozen dataclass of plain values. Its class name and fields
    are part of the state of a loader: a run can be resumed only with the same ones.
    """

    @property
    def vocabulary(self) -> vocabulary_lib.Vocabulary:
        """The vocabulary of all ids."""

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Layouts of the streams, in their order."""

    @property
    def in_lanes(self) -> bool:
        """Whether row b of a batch continues row b of the previous batch."""

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """Ids of special tokens that are predicted once per piece.

        They count in the unigram entropy with which losses are compared.
        """

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces streams"]:
        """Tokens of pieces in each stream, including special tokens."""

    def max_residues(self, *capacities: int) -> int:
        """Residues of the longest piece that fits into rows of `capacities` tokens.

        Raises:
          ValueError: no residue fits.
        """

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> Pieces:
        """Turns concatenated pieces into tokens.

        Args:
          residues: ids of all pieces.
          lengths: residues of each piece.
          keys: key of the random bits of each piece.
        """


def merge(
    parts: list[tuple[Stream, ...]], order: list[np.ndarray]
) -> tuple[Stream, ...]:
    """Merges pieces of several corruptions.

    Args:
      parts: streams of each corruption.
      order: order[p][i] is the place of piece i of part p in the result.
    """
    place = np.argsort(np.concatenate(order), kind="stable")
    merged = []
    for streams in zip(*parts, strict=True):
        lengths = np.concatenate([s.lengths for s in streams])
        tokens = _ranges((np.cumsum(lengths) - lengths)[place], lengths[place])
        values = {
            name: np.concatenate([s.values[name] for s in streams])[tokens]
            for name in streams[0].layout.fields
        }
        merged.append(Stream(streams[0].layout, lengths[place], values))
    return tuple(merged)


def ordinals(counts: Lengths) -> jaxtyping.Int64[np.ndarray, " total"]:
    """0 .. count - 1 for each of `counts`, concatenated."""
    return _ranges(np.zeros(len(counts), np.int64), counts)


def at_least_one(residues: int, capacities: str) -> int:
    """Returns `residues`; ValueError("rows of ...") if it is below 1."""
    if residues < 1:
        raise ValueError(f"rows of {capacities}.")
    return residues


def _ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin .. begin + count - 1 for each, concatenated."""
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(begins - before, counts)
