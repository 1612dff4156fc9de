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
from typing import Any, Protocol

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
      task_feature: what it is called in examples of SeqIO; "": it is not among them.
    """

    dtype: Any
    fill: int = 0
    task_feature: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Features that share a length.

    Attributes:
      length: name of that length in `feature_lengths`, as "inputs".
      fields: by name. Two come of themselves: `segment_ids` (0 is padding, 1 .. the
        pieces of the row) and `positions` (from 0 in each piece).
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
    """Pieces end to end.

    Attributes:
      layout: whose fields `values` has.
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
        """As `Pieces.streams`: this is the only one."""
        return (self,)

    def take(self, first: Lengths, count: Lengths) -> "Stream":
        """Of each piece the `count` tokens from number `first` on."""
        begins = np.cumsum(self.lengths) - self.lengths + first
        at = _ranges(begins, count)
        return Stream(
            self.layout, count, {name: v[at] for name, v in self.values.items()}
        )


class Pieces(Protocol):
    """What `Corruption.corrupt` returns."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """One for each layout of the corruption."""


class Corruption(Protocol):
    """How residues are hidden and framed by special tokens.

    An implementation is a frozen dataclass. Its repr is part of the state of a loader,
    so a run can be resumed only with the same repr.
    """

    @property
    def vocabulary(self) -> vocabulary_lib.Vocabulary:
        """Whose ids these are."""

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Of the streams, in their order."""

    @property
    def in_lanes(self) -> bool:
        """Whether row b of a batch goes on where row b of the last one ended."""

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """Ids that stand once among what is predicted of each piece, besides residues.

        They count in the unigram entropy that the losses are compared with.
        """

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces streams"]:
        """Tokens in each stream of pieces of `lengths` residues, special ones too."""

    def max_residues(self, *capacities: int) -> int:
        """Residues of the longest piece that fits into rows of so many tokens.

        Raises:
          ValueError: not even one does.
        """

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> Pieces:
        """Makes tokens of pieces laid end to end.

        Args:
          residues: ids of all pieces.
          lengths: residues of each piece.
          keys: stream of random bits of each piece.
        """


def merge(
    parts: list[tuple[Stream, ...]], order: list[np.ndarray]
) -> tuple[Stream, ...]:
    """Merges pieces of several corruptions; part p's i-th piece goes to order[p][i]."""
    place = np.argsort(np.concatenate(order), kind="stable")
    merged = []
    for streams in zip(*parts, strict=True):
        lengths = np.concatenate([s.lengths for s in streams])
        at = _ranges((np.cumsum(lengths) - lengths)[place], lengths[place])
        values = {
            name: np.concatenate([s.values[name] for s in streams])[at]
            for name in streams[0].layout.fields
        }
        merged.append(Stream(streams[0].layout, lengths[place], values))
    return tuple(merged)


def ordinals(counts: Lengths) -> jaxtyping.Int64[np.ndarray, " total"]:
    """0 .. count - 1 for each of `counts`, end to end."""
    return _ranges(np.zeros(len(counts), np.int64), counts)


def at_least_one(residues: int, capacities: str) -> int:
    """`residues`, which must be 1 or more for rows of `capacities` to hold anything."""
    if residues < 1:
        raise ValueError(f"rows of {capacities}.")
    return residues


def _ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin .. begin + count - 1 for each, end to end."""
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(begins - before, counts)
