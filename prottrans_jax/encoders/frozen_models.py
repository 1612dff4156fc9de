"""Frozen models: what `load_encoder` and `load_model` return."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import numbers
import os
from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.embed import (
    batching,
    embedder,
    forward,
    pooling,
    progress_bar,
    sequence_input,
)
from prottrans_jax.encoders import attention_maps, frozen_params
from prottrans_jax.files import paths
from prottrans_jax.kernels import quantized
from prottrans_jax.proteins import nucleotides
from prottrans_jax.proteins import vocabulary as vocabularies

if TYPE_CHECKING:
    from prottrans_jax.embed import reports


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(frozen_params.Holder):
    """A frozen encoder: a tree of parameters and a pure function of it.

    It can be pickled and copied, for multiprocessing (start method "spawn") and joblib.

    Attributes:
      module: Linen model with `encode(tokens, mask, *, deterministic)`.
      params: Its parameters, without heads and decoder.
      config: Its configuration.
      vocabulary: Residues and special pieces by id.
      prefix: Ids before the residues of a row.
      suffix: Ids after them.
      name: Name under which it was loaded.
      source: Folder of the checkpoint, also in a bucket.
      fingerprint: Hash of the stored parameters: all names and shapes, and a sample of
        the values. Includes the vocabulary if it is not the family's.
      revision: Commit of the hub's repository; "" if unknown.
      prefix_piece: The piece before each protein, or "".
      unknown_ids: Why the ids of residues are unknown; "" if they are known. Such an
        encoder accepts token ids and refuses residues.
    """

    module: nn.Module
    params: types.Params
    config: types.ModelConfig
    vocabulary: vocabularies.Vocabulary
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    name: str
    source: paths.Place
    fingerprint: str
    revision: str
    prefix_piece: str = ""
    unknown_ids: str = ""

    def __repr__(self) -> str:
        sizes = f"{self.num_layers} layers, d_model {self.d_model}, {self.dtype}"
        return f"Encoder({self.name!r}, {type(self.module).__name__}, {sizes})"

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch length"],
        mask: Bool[Array | np.ndarray, "batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """Hidden states after the last layer.

        `embed` may round differently: on some CPUs it uses other matrix products, see
        `kernels.x86`.

        Args:
          tokens: Token ids, including special tokens; see `tokenize`.
          mask: True at real tokens, False at padding.

        Raises:
          ValueError: An id is outside the embedding table (not checked under tracing).
        """
        if not isinstance(tokens, jax.core.Tracer):
            self._check_range(np.asarray(tokens))
        return self.apply(self.params, tokens, mask)

    def apply(
        self,
        params: types.Params,
        tokens: Int[Array | np.ndarray, "batch length"],
        mask: Bool[Array | np.ndarray, "batch length"],
        *,
        layers: "int | str | Sequence[int]" = -1,
    ) -> Float[Array, "*layers batch length d_model"]:
        """`__call__` with other parameters, or other layers; pure and jittable."""
        selection = forward.parse_layers(layers, self.num_layers)
        return forward.encode(self.module, params, tokens, mask, selection)

    @property
    def num_layers(self) -> int:
        """Number of layers; there is one hidden state more."""
        return self.config.num_layers

    @property
    def d_model(self) -> int:
        """Size of an embedding."""
        return self.config.d_model

    @property
    def dtype(self) -> str:
        """Type of the products with the weights: "int8", or that of the model."""
        if quantized.is_quantized(self.params):
            return "int8"
        return self.module.compute.dtype.name

    @property
    def max_residues(self) -> int | None:
        """Longest protein the model has positions for; None if there is no limit."""
        limit = self.module.max_length
        special = len(self.prefix) + len(self.suffix)
        return None if limit is None else limit - special

    @property
    def cls_position(self) -> int | None:
        """Position of [CLS] in a row: 0 first, -1 last (XLNet); None without one."""
        if self.prefix[:1] == (self.vocabulary.cls_id,):
            return 0
        return -1 if self.suffix[-1:] == (self.vocabulary.cls_id,) else None

    def _check_range(self, tokens: np.ndarray) -> None:
        rows = self.config.vocab_size
        outside = np.argwhere((tokens < 0) | (tokens >= rows))
        if len(outside):
            index = tuple(outside[0].tolist())
            raise ValueError(
                f"tokens{list(index)} is {tokens[index]}; ids must be 0 to {rows - 1}, "
                f"the rows of the embedding table. {len(outside)} such ids in all."
            )

    def check_ids(self) -> None:
        """Raises ValueError if the ids of residues are unknown."""
        if self.unknown_ids:
            raise ValueError(self.unknown_ids)

    def tokenize(
        self, sequences: Iterable[str]
    ) -> tuple[Int[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """Token ids with special tokens, padded on the right, and their mask.

        Args:
          sequences: A list or another ordered iterable of sequences; as in `embed`.
        """
        if isinstance(sequences, str):
            raise ValueError(
                "tokenize takes a list of sequences; pass [sequence] for a single one."
            )
        residues = self._all_residues(sequences)
        special = self._tokens.num_special
        lengths = [len(x) + special for x in residues]
        longest = max(lengths, default=special)
        batch = batching.one_each(range(len(lengths)), lengths, length=longest)
        tokens, segments = self._tokens.rows(residues, batch)
        return tokens, segments != 0

    def embed(
        self,
        sequences: str | Iterable[str],
        pool: str | None = None,
        layers: "int | str | Sequence[int]" = -1,
        *,
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> (
        "list[Float[np.ndarray, '*layers residues d_model']] | Float[np.ndarray, '...']"
    ):
        """Embeddings of proteins, float32.

        Args:
          sequences: Residues, one letter each, of one protein or of several: a list,
            a generator, an array or a pandas Series of str. As in FASTA, U Z O B J
            count as X and lower case as upper case. White space, gaps (`-` `.`) and a
            final `*` are removed and get no vector. Nucleotides are embedded as
            residues, with a warning in the log.
          pool: None for a vector per residue; "mean" or "max" over the residues, or
            "cls", for one per protein.
          layers: A layer's number (-1 the last, 0 the embedded input), several, "all",
            or "last4" for the mean of the last four. Several add a leading axis.
          max_tokens: Maximum tokens in a batch, including padding; None: depends on
            the device.
          progress: Whether to show a progress bar on stderr.

        Returns:
          For several proteins a list of [residues, d_model], or with `pool` an array
          [proteins, d_model]. For a single str an array [residues, d_model] or
          [d_model].

        Raises:
          ValueError: A sequence is invalid; names the sequence, position and reason.
        """
        if isinstance(sequences, str):
            residues = [self._residues("the sequence", sequences)]
        else:
            residues = self._all_residues(sequences)
        nucleotides.warn_of(residues)
        runner = self.make_embedder(pool=pool, layers=layers, max_tokens=max_tokens)
        buckets = runner.buckets([len(x) for x in residues])
        with progress_bar.bar(progress) as show:
            vectors = _vectors(runner, residues, buckets, show=show)
        if isinstance(sequences, str):
            return vectors[0]
        if runner.pool is None:
            return vectors
        selection = runner.layers
        leading = (len(selection.indices),) if selection.combine == "stack" else ()
        if not vectors:
            return np.zeros((0, *leading, self.d_model), np.float32)
        return np.stack(vectors)

    def attention_maps(
        self, sequences: str | Iterable[str]
    ) -> (
        "Float[np.ndarray, 'layers heads length length'] | "
        "list[Float[np.ndarray, 'layers heads length length']]"
    ):
        """Attention weights of a protein, special tokens included; rows sum to 1.

        Args:
          sequences: As in `embed`.

        Returns:
          For a single str [layers, heads, length, length], for several proteins a
          list of such arrays.

        Raises:
          ValueError: The family is not supported; see `attention_maps`.
        """
        if not isinstance(sequences, str):
            # Check all before the first is computed.
            residues = self._all_residues(sequences)
            return [self._attention_maps(x) for x in residues]
        return self._attention_maps(self._residues("the sequence", sequences))

    def _attention_maps(
        self, residues: bytes
    ) -> Float[np.ndarray, "layers heads length length"]:
        tokens, _ = self.tokenize([residues.decode()])
        return np.asarray(
            attention_maps.attention_maps(self.module, self.params, tokens[0])
        )

    def stream(
        self,
        proteins: Iterable[tuple[str, str]],
        pool: str | None = None,
        layers: "int | str | Sequence[int]" = -1,
        *,
        window: int = 1024,
        max_tokens: int | None = None,
    ) -> Iterator[tuple[str, Float[np.ndarray, "*layers residues d_model"]]]:
        """Yields (id, vectors) of proteins in order, with one window in memory.

        Args:
          proteins: Any number of (id, residues) pairs; residues as in `embed`.
          pool: As in `embed`.
          layers: As in `embed`.
          window: Proteins that are sorted by length together.
          max_tokens: As in `embed`.
        """
        _check_count("window", window)
        runner = self.make_embedder(pool=pool, layers=layers, max_tokens=max_tokens)
        source = sequence_input.pairs(proteins)
        buckets, is_warned = None, False
        while pairs := list(itertools.islice(source, window)):
            residues = [self._residues(f"protein {name!r}", s) for name, s in pairs]
            is_warned = is_warned or nucleotides.warn_of(residues)
            if buckets is None:
                buckets = runner.buckets([len(x) for x in residues])
            vectors = _vectors(
                runner, residues, buckets, more_to_come=len(pairs) == window
            )
            yield from zip([name for name, _ in pairs], vectors, strict=True)

    def embed_fasta(
        self,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        output: str | os.PathLike,
        *,
        per_residue: bool = False,
        per_protein: bool = False,
        pool: str | None = None,
        layers: "int | str | Sequence[int]" = -1,
        output_dtype: str | None = None,
        batch_tokens: int | None = None,
        max_batch: int | None = None,
        max_length: int | None = None,
        long: str = "error",
        chunk_overlap: int | None = None,
        key: str = "auto",
        on_bad: str = "error",
        on_duplicate: str = "error",
        allow_nucleotides: bool = False,
        reuse: str | os.PathLike | Sequence[str | os.PathLike] = (),
        resume: bool = True,
        overwrite: bool = False,
        commit_seconds: float = 30.0,
        devices: Sequence[jax.Device] | None = None,
        progress: bool = False,
    ) -> "reports.Report":
        """Embeds a FASTA file into an .h5, .npz, .parquet, .zarr or .csv file.

        Same as `prottrans embed`, with the names and defaults of its flags.

        Args:
          source: A FASTA file, plain or compressed, or several that are read in order
            as one; "-" is standard input.
          output: File to write; its suffix determines the format.
          per_residue: Whether to write a vector per residue; the default if
            `per_protein` is False.
          per_protein: Whether to write one vector per protein. With both, two files are
            written: OUTPUT.per_residue.h5 and OUTPUT.per_protein.h5.
          pool: Pooling of residues for `per_protein`: "mean" (the default), "max",
            "cls".
          layers: As in `embed`.
          output_dtype: "float16" or "float32"; by default float16 for vectors per
            residue and float32 for those per protein.
          batch_tokens: Maximum tokens in a batch, including padding; None: depends on
            the device.
          max_batch: Maximum proteins in a batch.
          max_length: Residues above which `long` applies; None: the model's limit, if
            any.
          long: Policy for longer proteins: "error", "skip", "chunk" or "truncate".
          chunk_overlap: Residues that neighbouring pieces share; None: a quarter of
            `max_length`.
          key: Scheme of the proteins' keys in the file; see `embed.keys.make`.
          on_bad: Policy for invalid records: "error" or "skip".
          on_duplicate: Policy for an id that occurs again with another sequence:
            "error", "suffix" or "first".
          allow_nucleotides: Whether to accept a file with only A, C, G, T, U and N as
            proteins.
          reuse: HDF5 files with vectors of the same model to reuse.
          resume: Whether to continue an earlier run and keep vectors in the output; if
            not, everything is computed anew.
          overwrite: Whether to replace an output of another model or other settings.
          commit_seconds: Maximum seconds between commits, fewer at first; a kill loses
            at most the vectors since the last commit.
          devices: Devices to use in turn; None: all accelerators, or one CPU.
          progress: Whether to show a progress bar on stderr.

        Returns:
          A report: counts, omitted records, seconds, files.

        Raises:
          ValueError: The input or an option is invalid; names it and the reason.
          files.locks.LockedError: Another process is writing to this output.
          embed.job.DiskFullError: No space left; computed vectors are kept.
        """
        from prottrans_jax.embed import job, settings

        options = settings.Options(
            per_residue=per_residue,
            per_protein=per_protein,
            pool=pool,
            layers=layers,
            output_dtype=output_dtype,
            batch_tokens=batch_tokens,
            max_batch=max_batch,
            max_length=max_length,
            long=long,
            chunk_overlap=chunk_overlap,
            key=key,
            on_bad=on_bad,
            on_duplicate=on_duplicate,
            allow_nucleotides=allow_nucleotides,
            reuse=settings.paths_of(reuse),
            resume=resume,
            overwrite=overwrite,
            commit_seconds=commit_seconds,
            devices=devices,
        )
        with progress_bar.bar(progress) as show:
            return job.embed_fasta(
                self,
                source,
                output,
                options,
                on_progress=lambda x: show(x.residues, x.of_residues),
            )

    def make_embedder(
        self,
        *,
        pool: str | None = None,
        layers: "int | str | Sequence[int] | forward.Layers" = -1,
        keep_residues: bool | None = None,
        max_tokens: int | None = None,
        max_rows: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        may_share_rows: bool = False,
    ) -> embedder.Embedder:
        """The runner of batches; arguments as in `embed.embedder.Embedder`."""
        pool = pooling.check(pool, has_cls=self.cls_position is not None)
        for name, value in (("max_tokens", max_tokens), ("max_rows", max_rows)):
            if value is not None:
                _check_count(name, value)
        return embedder.Embedder(
            self.module,
            self.params,
            self._tokens,
            layers=forward.parse_layers(layers, self.num_layers),
            pool=pool,
            keep_residues=(pool is None) if keep_residues is None else keep_residues,
            max_tokens=max_tokens,
            max_rows=max_rows,
            devices=devices,
            may_share_rows=may_share_rows,
            copies=self._copies,
        )

    @functools.cached_property
    def _copies(self) -> dict[jax.Device, types.Params]:
        return {}

    @functools.cached_property
    def _tokens(self) -> embedder.Tokens:
        self.check_ids()
        return embedder.Tokens(
            self.vocabulary.byte_table,
            self.prefix,
            self.suffix,
            self.vocabulary.pad_id,
            self.cls_position or 0,
        )

    def _residues(self, what: str, sequence: object) -> bytes:
        residues = sequence_input.residues_of(what, sequence)
        if self.max_residues is not None and len(residues) > self.max_residues:
            raise ValueError(
                f"{what} has {len(residues):,} residues; the model has "
                f"positions for {self.max_residues:,}. Cut it, or use embed_fasta("
                f"..., max_length={self.max_residues}, long='chunk')."
            )
        return residues

    def _all_residues(self, sequences: Iterable[str]) -> list[bytes]:
        return [
            self._residues(f"sequence {number}", sequence)
            for number, sequence in enumerate(sequence_input.in_order(sequences))
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Model(frozen_params.Holder):
    """A frozen model with decoder and heads.

    Attributes:
      module: Linen model; `module.apply({"params": params}, ...)` returns its logits.
      params: Its parameters.
      config: Its configuration.
      vocabulary: Residues and special pieces by id.
      name: Name under which it was loaded.
      source: Folder of the checkpoint.
      prefix: Ids before the residues of a row.
      suffix: Ids after them.
      fingerprint: As in `Encoder`, of all parameters.
      unknown_ids: As in `Encoder`.
    """

    module: nn.Module
    params: types.Params
    config: types.ModelConfig
    vocabulary: vocabularies.Vocabulary
    name: str
    source: paths.Place
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    fingerprint: str = ""
    unknown_ids: str = ""

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {type(self.module).__name__})"

    def __call__(self, *inputs: Array | np.ndarray, **keywords: Any) -> Any:
        """Logits without dropout; arguments as of the module, which may be NumPy's."""
        keywords.setdefault("deterministic", True)
        inputs, keywords = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x,
            (inputs, keywords),
        )
        return self.module.apply({"params": self.params}, *inputs, **keywords)


def _vectors(
    runner, residues, buckets, more_to_come=False, show=lambda done, total: None
) -> list[Any]:
    """Vectors of the sequences in order."""
    work = runner.work(residues, buckets, more_to_come=more_to_come)
    vectors: list[Any] = [None] * len(residues)
    done, total = 0, sum(map(len, residues))
    for _, index, embedding in runner.run(work):
        if runner.pool is None:
            vectors[index] = np.array(embedding.residues, np.float32)
        else:
            vectors[index] = np.array(embedding.protein)
        done += len(residues[index])
        show(done, total)
    return vectors


def _check_count(name: str, value: Any) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more.")
