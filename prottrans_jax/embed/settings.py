"""Options of a job, and settings resolved from them for one encoder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any, Protocol

import jax
from jaxtyping import Int
import numpy as np

from prottrans_jax.config import setting_types
from prottrans_jax.embed import (
    chunks,
    embedder,
    forward,
    inputs,
    keys,
    pooling,
    writers,
)
from prottrans_jax.files import paths as local_paths
from prottrans_jax.kernels import products, quantized
from prottrans_jax.proteins import vocabulary as vocabularies

_FORMAT = 1
_CUTS = ("chunk", "truncate")


class Runner(Protocol):
    """What a job needs of `embed.embedder.Embedder`."""

    compile_seconds: float

    @property
    def tokens(self) -> embedder.Tokens:
        """Maps residues to tokens."""

    def cost(self, tokens: np.ndarray) -> np.ndarray:
        """Estimated cost of sequences by their tokens."""

    def buckets(self, lengths: Sequence[int]) -> np.ndarray:
        """Row lengths for a job."""

    def work(
        self,
        sequences: Sequence[bytes],
        buckets: np.ndarray,
        tag: object = None,
        *,
        more_to_come: bool = False,
    ) -> list[embedder.Work]:
        """Batches of sequences."""

    def run(
        self,
        work: Iterable[embedder.Work],
        on_too_large: (
            Callable[[embedder.Work, embedder.OutOfMemory], None] | None
        ) = None,
        on_wait: Callable[[embedder.Work], None] = ...,
    ) -> Iterator[tuple[embedder.Work, int, embedder.Embedding]]:
        """(work, number, vectors) of every member of the batches."""


class Encoder(Protocol):
    """What a job needs of `encoders.frozen_models.Encoder`."""

    @property
    def name(self) -> str:
        """Name under which it was loaded."""

    @property
    def source(self) -> local_paths.Place:
        """Folder of the checkpoint."""

    @property
    def revision(self) -> str:
        """Commit of the hub's repository; "" if unknown."""

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""

    @property
    def prefix_piece(self) -> str:
        """The piece before each protein, or ""."""

    @property
    def vocabulary(self) -> vocabularies.Vocabulary:
        """Residues and special pieces by id."""

    @property
    def dtype(self) -> str:
        """Type of the products with the weights."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""

    @property
    def d_model(self) -> int:
        """Size of an embedding."""

    @property
    def max_residues(self) -> int | None:
        """Longest protein that the model has positions for; None: no limit."""

    @property
    def cls_position(self) -> int | None:
        """Position of [CLS] in a row; None without one."""

    def check_ids(self) -> None:
        """Raises ValueError if the ids of residues are unknown."""

    def embed(
        self, sequences: Sequence[str], pool: str | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors of the sequences."""

    def make_embedder(
        self,
        *,
        pool: str | None,
        layers: forward.Layers,
        keep_residues: bool | None,
        max_tokens: int | None,
        max_rows: int | None,
        devices: Sequence[jax.Device] | None,
        may_share_rows: bool,
    ) -> Runner:
        """The runner of batches."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a job; the names are the command's flags.

    Attributes:
      per_residue: Whether to write a vector per residue.
      per_protein: Whether to write one per protein. With both, two files are written:
        OUTPUT.per_residue.h5 and OUTPUT.per_protein.h5. With neither, per residue.
      pool: Pooling of a protein's vectors: "mean", "max" or "cls"; None: "mean".
      layers: Hidden states to write; see `embed.forward.parse_layers`.
      key: Scheme of the keys under which proteins are stored; see `embed.keys`.
      output_dtype: Stored type, "float16" or "float32". None: float16 for vectors per
        residue, like UniProt, and float32 for those per protein.
      max_length: Limit in residues; `long` is the policy for longer proteins. None: the
        number of the model's positions, or no limit.
      long: "error", "skip", "chunk" or "truncate".
      chunk_overlap: Residues shared by neighbouring pieces; None: a quarter of
        `max_length`.
      on_bad: Policy for a record that cannot be used: "error" or "skip".
      on_duplicate: Policy for a key that occurs again with another sequence: "error",
        "suffix" or "first".
      allow_nucleotides: Whether to accept a file of A, C, G, T, U and N as proteins.
      batch_tokens: Tokens of one call of the model, with padding; None: by device.
      max_batch: Most proteins of one call.
      resume: Whether to resume from shards and outputs of an earlier run.
      overwrite: Whether to replace an output of another model or other settings.
      commit_seconds: Results are committed at least this often (apart from those of a
        single call), so that a kill loses no more than this. At first commits are more
        frequent; from the 50th minute on the interval is a hundredth of the time so
        far, for fewer shards.
      reuse: HDF5 files with vectors of the same model, looked up by accession, that are
        not computed again.
      devices: Devices to use in turn; None: all accelerators, or one CPU.
    """

    per_residue: bool = False
    per_protein: bool = False
    pool: str | None = None
    layers: "int | str | Sequence[int]" = -1
    key: str = "auto"
    output_dtype: str | None = None
    max_length: int | None = None
    long: str = "error"
    chunk_overlap: int | None = None
    on_bad: str = "error"
    on_duplicate: str = "error"
    allow_nucleotides: bool = False
    batch_tokens: int | None = None
    max_batch: int | None = None
    resume: bool = True
    overwrite: bool = False
    commit_seconds: float = 30.0
    reuse: tuple[str, ...] = ()
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self):
        setting_types.replace_fields(self, reuse=paths_of(self.reuse))
        setting_types.check_fields(self)
        for field, value, choices in (
            ("key", self.key, keys.SCHEMES),
            ("long", self.long, chunks.POLICIES),
            ("on_bad", self.on_bad, ("error", "skip")),
            ("on_duplicate", self.on_duplicate, inputs.ON_DUPLICATE),
        ):
            if value not in choices:
                raise ValueError(
                    f"{field}={value!r} is not known. Choose one of "
                    f"{', '.join(choices)}."
                )
        for field, flag, least in (
            ("max_length", "--max-length", 1),
            ("chunk_overlap", "--chunk-overlap", 0),
            ("batch_tokens", "--batch-tokens", 1),
            ("max_batch", "--max-batch", 1),
        ):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(
                    f"{field}={value} ({flag}): it must be at least {least}."
                )
        seconds = self.commit_seconds
        if not seconds >= 0:
            raise ValueError(
                f"commit_seconds={seconds} (--commit-seconds): it must be at least 0."
            )
        if self.chunk_overlap is not None and self.long != "chunk":
            raise ValueError(
                f"chunk_overlap={self.chunk_overlap} (--chunk-overlap) is for "
                f"long='chunk' (--long chunk), not {self.long!r}."
            )
        if self.pool is not None and not self.per_protein:
            raise ValueError(
                f"pool={self.pool!r} (--pool) is for one vector per protein: add "
                "per_protein (--per-protein)."
            )
        if self.pool is not None and self.pool not in pooling.POOLINGS:
            raise ValueError(
                f"pool={self.pool!r} (--pool) is not known. Choose one of "
                f"{', '.join(pooling.POOLINGS)}."
            )
        if self.output_dtype not in (None, "float16", "float32"):
            raise ValueError(
                f"output_dtype={self.output_dtype!r} (--output-dtype): files hold "
                "float16 or float32."
            )


def paths_of(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
) -> tuple[str, ...]:
    """A tuple of one or several paths."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return tuple(str(local_paths.place(path, "reuse")) for path in several)


def output_paths(
    output: str | os.PathLike, options: Options
) -> dict[str, local_paths.Place]:
    """Path of each kind of output, "residues" and "protein", that is written."""
    both = options.per_residue and options.per_protein
    per_residue = options.per_residue or not options.per_protein
    path = writers.check_path(output, per_residue=per_residue)
    if both:
        return {
            "residues": path.with_name(f"{path.stem}.per_residue{path.suffix}"),
            "protein": path.with_name(f"{path.stem}.per_protein{path.suffix}"),
        }
    return {"residues" if per_residue else "protein": path}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options resolved for one encoder; made by `resolve`.

    Attributes:
      encoder: `encoders.frozen_models.Encoder`.
      options: Options, with `max_length` resolved.
      output: Output path as given by the user; OUTPUT.parts and others are beside it.
      paths: Path of each kind of output, "residues" and "protein", that is written.
      layers: Hidden states to write.
      pool: Pooling of a protein's vectors.
      dtypes: Stored type of each kind.
      limit_is_own: Whether `max_length` was unset and is the model's own limit.
    """

    encoder: Encoder
    options: Options
    output: local_paths.Place
    paths: Mapping[str, local_paths.Place]
    layers: forward.Layers
    pool: str | None
    dtypes: Mapping[str, np.dtype]
    limit_is_own: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Fields that must be equal for one run to resume another.

        The fingerprint of the weights identifies the model, not its name.
        """
        options = self.options
        limited = options.max_length is not None and options.long != "error"
        if self.limit_is_own and options.long == "skip":
            # Earlier versions always skipped proteins beyond the model's positions, and
            # recorded no limit.
            limited = False
        return {
            "format": _FORMAT,
            "weights_fingerprint": self.encoder.fingerprint,
            # Absent without a prefix, as in earlier versions.
            **({"prefix": prefix} if (prefix := self.encoder.prefix_piece) else {}),
            "dtype_compute": self.dtype_compute,
            "layer": str(self.layers),
            "outputs": sorted(self.paths),
            "pooling": self.pool if "protein" in self.paths else None,
            "dtype": {kind: self.dtypes[kind].name for kind in sorted(self.paths)},
            "key": options.key,
            "long": (
                [options.long, options.max_length, options.chunk_overlap]
                if limited
                else None
            ),
        }

    @property
    def dtype_compute(self) -> str:
        """Type of weights in matrix products, and of activations if it differs."""
        if self.encoder.dtype != "int8":
            return self.encoder.dtype
        narrow = products.rounds_inputs_to_int8(jax.default_backend())
        name = "int8" if narrow else "int8 weights, bfloat16"
        return f"{name}; {quantized.ROUNDING}"

    @property
    def shape(self) -> tuple[int, ...]:
        """[*layers, d_model] of a stored vector."""
        stacked = self.layers.combine == "stack"
        return (*([len(self.layers.indices)] * stacked), self.encoder.d_model)

    @property
    def cuts(self) -> bool:
        """Whether proteins over the limit are embedded in pieces."""
        return self.options.max_length is not None and self.options.long in _CUTS

    def stored_lengths(
        self, lengths: Int[np.ndarray, " records"]
    ) -> Int[np.ndarray, " records"]:
        """Rows in the output, by the number of residues of a protein."""
        if self.options.max_length is not None and self.options.long == "truncate":
            return np.minimum(lengths, self.options.max_length)
        return lengths

    def make_embedder(
        self, *, pool: bool, residues: bool, may_share_rows: bool = False
    ) -> Runner:
        """An embedder that returns vectors per protein, per residue or both."""
        return self.encoder.make_embedder(
            pool=self.pool if pool else None,
            layers=self.layers,
            keep_residues=residues,
            max_tokens=self.options.batch_tokens,
            max_rows=self.options.max_batch,
            devices=self.options.devices,
            may_share_rows=may_share_rows,
        )


def resolve(encoder: Encoder, output: str | os.PathLike, options: Options) -> Settings:
    """Resolves and checks options for one encoder.

    Raises:
      ValueError: Unknown format, layer or pooling, or the encoder's ids are unknown.
    """
    encoder.check_ids()
    paths = output_paths(output, options)
    original, options = options, _with_limit(encoder, options)
    layers = forward.parse_layers(options.layers, encoder.num_layers)
    pool = pooling.check(
        options.pool or "mean", has_cls=encoder.cls_position is not None
    )
    if "protein" in paths and layers.combine == "stack":
        writers.check_path(output, per_residue=False, several_layers=True)
    if options.max_length is not None and options.long in _CUTS:
        if "protein" in paths and pool == "cls":
            raise ValueError(pooling.CLS_OF_PIECES)
        if options.long == "chunk":
            chunks.overlap(options.max_length, options.chunk_overlap)
    return Settings(
        encoder=encoder,
        options=options,
        output=local_paths.place(output, "output"),
        paths=paths,
        layers=layers,
        pool=pool,
        dtypes={
            "residues": np.dtype(options.output_dtype or "float16"),
            "protein": np.dtype(options.output_dtype or "float32"),
        },
        limit_is_own=original.max_length is None and options.max_length is not None,
    )


def _with_limit(encoder: Encoder, options: Options) -> Options:
    """Sets `max_length` to the model's own limit, if `long` needs a limit.

    Raises:
      ValueError: There is no limit, or pieces are longer than the model accepts.
    """
    most = encoder.max_residues
    if options.long == "error":
        return options
    if options.max_length is None and most is None:
        raise ValueError(
            f"long={options.long!r} (--long) needs max_length (--max-length N): this "
            "model takes proteins of any length."
        )
    if options.max_length is None:
        return dataclasses.replace(options, max_length=most)
    if options.long in _CUTS and most is not None and options.max_length > most:
        raise ValueError(
            f"max_length={options.max_length} (--max-length) with "
            f"--long {options.long}: the model has positions for {most} residues. "
            f"Choose {most} or less."
        )
    return options
