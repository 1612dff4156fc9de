"""Batches of labelled proteins for the trainer: a protein in each row.

Proteins of similar length share a batch, whose rows have one of a few lengths; each
length is compiled once. The order of an epoch is a pure function of (seed, epoch), so
that a run resumes anywhere with the same bits.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, Protocol

from jaxtyping import Int
import numpy as np

from prottrans_jax import differences
from prottrans_jax.downstream import labelled
from prottrans_jax.embed import batching
from prottrans_jax.files import digests

# Lengths of rows: each is a program of the training step, compiled in seconds.
_MAX_LENGTHS = 8
# Proteins of an epoch are sorted by length times a factor within 1 +- this, so that a
# batch does not hold the same proteins in every epoch.
_LENGTH_NOISE = 0.1
# Of the features of a batch; two batches wait for the device.
_MAX_BATCH_BYTES = 2 << 30


class Inputs(Protocol):
    """What the rows of a batch hold besides labels; see `VectorInputs`."""

    @property
    def identity(self) -> str:
        """Names the encoder and how it was run."""

    @property
    def bytes_per_position(self) -> int:
        """Memory of a position of a row."""

    def num_positions(self, protein: labelled.LabelledProtein) -> int:
        """Positions of the row that the protein needs."""

    def features(
        self, proteins: Sequence[labelled.LabelledProtein], length: int, rows: int
    ) -> dict[str, np.ndarray]:
        """Features, each [rows, ...]; those of the last rows are padding."""


class LabelledRows:
    """A `types.Loader` of labelled proteins.

    Args:
      proteins: Labelled proteins of a split.
      inputs: Vectors or tokens of the proteins.
      batch_size: Proteins of a batch.
      seed: Seed of the order.
      is_training: Whether epochs are shuffled and go on without end. If not, there is
        one epoch, from the shortest protein to the longest.

    Raises:
      ValueError: There is no protein, or the batch of the longest ones is too large.
    """

    def __init__(
        self,
        proteins: labelled.LabelledSet,
        inputs: Inputs,
        *,
        batch_size: int,
        seed: int = 0,
        is_training: bool,
    ):
        if not proteins.proteins:
            raise ValueError(f"{proteins.task.name}: no labelled protein is left.")
        self.batch_size = batch_size
        self._task = proteins.task
        self._proteins = proteins.proteins
        self._inputs = inputs
        self._seed = seed
        self._is_training = is_training
        self._lengths = np.array([inputs.num_positions(p) for p in self._proteins])
        self._row_lengths = _row_lengths(self._lengths)
        self._epochs: dict[int, list[Int[np.ndarray, " batch"]]] = {}
        self._check_memory()

    def _check_memory(self) -> None:
        longest = int(self._lengths.argmax())
        size = int(self._row_lengths[-1]) * self.batch_size
        size *= self._inputs.bytes_per_position
        if size > _MAX_BATCH_BYTES:
            protein = self._proteins[longest]
            raise ValueError(
                f"{protein.place}: {protein.id!r} has {len(protein.residues):,} "
                f"residues; a batch of {self.batch_size} such proteins takes "
                f"{size / 2**30:.1f} GiB, the limit is {_MAX_BATCH_BYTES / 2**30:.0f}. "
                "Choose a smaller batch, or a max_length to which proteins and labels "
                "are truncated."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every protein occurs once."""
        return -(-len(self._proteins) // self.batch_size)

    @property
    def num_batches(self) -> int | None:
        """Number of batches; None in training: infinite."""
        return None if self._is_training else self.batches_per_epoch

    def _epoch(self, epoch: int) -> list[Int[np.ndarray, " batch"]]:
        """The proteins of each batch of an epoch, by number."""
        # The threads of data and of the log may be in two epochs.
        kept = self._epochs.get(epoch)
        if kept is None:
            kept = self._new_epoch(epoch)
            before = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs = {**before, epoch: kept}
        return kept

    def _new_epoch(self, epoch: int) -> list[Int[np.ndarray, " batch"]]:
        if not self._is_training:
            order = np.argsort(self._lengths, kind="stable")
            return _split(order, self.batch_size)
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        noise = generator.uniform(
            1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, len(self._lengths)
        )
        order = np.argsort(self._lengths * noise, kind="stable")
        batches = _split(order, self.batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]

    def members(self, index: int) -> Sequence[labelled.LabelledProtein]:
        """The proteins of a batch, in the order of its rows."""
        epoch, place = divmod(index, self.batches_per_epoch)
        return [self._proteins[i] for i in self._epoch(epoch)[place]]

    def batch(
        self, index: int, rows: slice | np.ndarray = slice(None)
    ) -> dict[str, np.ndarray]:
        """Rows of batch `index`; the last rows of an incomplete batch are padding."""
        proteins = self.members(index)
        longest = max(map(self._inputs.num_positions, proteins))
        length = int(self._row_lengths[np.searchsorted(self._row_lengths, longest)])
        chosen = np.arange(self.batch_size)[rows]
        # Padding comes last, also among the chosen rows, which ascend.
        own = [proteins[row] for row in chosen if row < len(proteins)]
        features = self._inputs.features(own, length, len(chosen))
        return features | self._labels(own, features["lengths"], length)

    def _labels(self, proteins, lengths, length: int) -> dict[str, np.ndarray]:
        dtype = np.float32 if self._task.is_regression else np.int32
        per_residue = self._task.level == "residue"
        shape = (len(lengths), length) if per_residue else (len(lengths),)
        labels, weights = np.zeros(shape, dtype), np.zeros(shape, np.float32)
        for row, protein in enumerate(proteins):
            where: Any = (row, slice(lengths[row])) if per_residue else row
            cut = slice(lengths[row]) if per_residue else ()
            counts = protein.counts[cut]
            labels[where] = np.where(counts, protein.labels[cut], 0)
            weights[where] = counts
        return {"labels": labels, "label_weights": weights}

    def example_ids(self, index: int) -> Sequence[str]:
        """Ids of the proteins of a batch."""
        return [protein.id for protein in self.members(index)]

    def state(self, next_index: int) -> dict[str, Any]:
        """State for `restore` to continue with batch `next_index`; plain JSON."""
        return {"next_batch": next_index, **self._identity}

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        digest = digests.Sha256()
        for protein in self._proteins:
            digest.update(f"{protein.id}\n{protein.residues}\n".encode())
            digest.update(np.asarray(protein.labels).tobytes())
            digest.update(protein.counts.tobytes())
        return {
            "task": self._task.name,
            "classes": list(self._task.classes),
            "proteins": digest.hexdigest(),
            "inputs": self._inputs.identity,
            "seed": self._seed,
            "batch_size": self.batch_size,
        }

    def restore(self, state: Mapping[str, Any]) -> int:
        """Continues a run at its next batch.

        Raises:
          ValueError: It read other proteins, labels or vectors; lists the differences.
        """
        saved = {name: state.get(name) for name in self._identity}
        lines = differences.lines(saved, self._identity)
        if lines:
            raise ValueError(
                "the saved run read other rows than this loader would (saved -> now):\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nGive the loader the run's settings, or start in a new folder."
            )
        return int(state["next_batch"])


def _split(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _row_lengths(lengths: Int[np.ndarray, " proteins"]) -> Int[np.ndarray, " lengths"]:
    """At most `_MAX_LENGTHS` lengths of rows, with the least padding."""
    cost = 0.0
    while len(chosen := batching.choose_buckets(lengths, cost)) > _MAX_LENGTHS:
        cost = 2 * cost + 1
    return chosen


class VectorInputs:
    """Vectors that were computed before.

    Args:
      vectors: `stored_vectors.StoredVectors`.
      encoder: Fingerprint of the encoder, and what else determines the vectors.
    """

    def __init__(self, vectors: Any, encoder: str):
        self._vectors = vectors
        self.identity = encoder

    @property
    def bytes_per_position(self) -> int:
        """Bytes of a vector in the file."""
        return self._vectors.d_model * self._vectors.dtype.itemsize

    def num_positions(self, protein: labelled.LabelledProtein) -> int:
        """Vectors of a protein: one for each residue, or one in all."""
        return self._vectors.num_rows(protein.residues)

    def features(
        self, proteins: Sequence[labelled.LabelledProtein], length: int, rows: int
    ) -> dict[str, np.ndarray]:
        """vectors [rows, length, d_model] and lengths [rows]."""
        vectors = np.zeros((rows, length, self._vectors.d_model), self._vectors.dtype)
        lengths = np.zeros(rows, np.int32)
        for row, protein in enumerate(proteins):
            lengths[row] = self.num_positions(protein)
            self._vectors.read_into(protein.residues, vectors[row])
        return {"vectors": vectors, "lengths": lengths}
