"""Frozen models for use: load one, embed proteins, or call it in research code.

  encoder = load_encoder("prot_t5")
  vectors = encoder.embed(["PRTEINO", "SEQWENCE"])  # list of [residues, d_model]
  hidden = encoder(tokens, mask)  # a pure function of encoder.params

Needs neither TensorFlow, seqio nor torch.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import difflib
import functools
import itertools
import numbers
import os
import pathlib
from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.checkpoints import opening
from prottrans_jax.embed import (
    batching,
    embedder,
    forward,
    layerwise,
    pooling,
    progress_bar,
    sequence_input,
)
from prottrans_jax.encoders import attention_maps, frozen_params
from prottrans_jax.interop import families, huggingface
from prottrans_jax.interop import vocabularies as model_vocabularies
from prottrans_jax.kernels import quantized
from prottrans_jax.proteins import nucleotides
from prottrans_jax.proteins import vocabulary as vocabularies

if TYPE_CHECKING:
    from prottrans_jax.embed import reports

# Short names of the released models: repository of the Hugging Face hub.
NAMES = {
    "prot_t5": "Rostlab/prot_t5_xl_half_uniref50-enc",
    "prot_t5_xl_u50": "Rostlab/prot_t5_xl_uniref50",
    "prot_t5_xl_bfd": "Rostlab/prot_t5_xl_bfd",
    "prot_t5_xxl_u50": "Rostlab/prot_t5_xxl_uniref50",
    "prot_t5_xxl_bfd": "Rostlab/prot_t5_xxl_bfd",
    "prot_bert": "Rostlab/prot_bert",
    "prot_bert_bfd": "Rostlab/prot_bert_bfd",
    "prot_albert": "Rostlab/prot_albert",
    "prot_electra_discriminator": "Rostlab/prot_electra_discriminator_bfd",
    "prot_electra_generator": "Rostlab/prot_electra_generator_bfd",
    "prot_xlnet": "Rostlab/prot_xlnet",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(frozen_params.Holder):
    """A frozen encoder; a tree of parameters and a pure function of it.

    It can be pickled and copied, for multiprocessing (start method "spawn") and joblib.

    Attributes:
      module: Linen model with `encode(tokens, mask, *, deterministic)`.
      params: Its parameters; heads and decoder are left out.
      config: Its configuration.
      vocabulary: Residues and special pieces by id.
      prefix: Ids before the residues of a row.
      suffix: Ids after them.
      name: What it was loaded as.
      source: The folder it came from.
      fingerprint: Hash of the parameters as stored: of all names and shapes, and of
        parts of the values. Of ids too that are not the family's.
      revision: Commit of the hub's repository it came from; "" if that is not known.
      prefix_piece: The piece before each protein that was asked for, or "".
      unknown_ids: Why it is not known which id a residue has, "" if it is: such an
        encoder takes token ids, and refuses residues.
    """

    module: nn.Module
    params: types.Params
    config: Any
    vocabulary: vocabularies.Vocabulary
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    name: str
    source: pathlib.Path
    fingerprint: str
    revision: str
    prefix_piece: str = ""
    unknown_ids: str = ""

    def __repr__(self) -> str:
        sizes = f"{self.num_layers} layers, d_model {self.d_model}, {self.dtype}"
        return f"Encoder({self.name!r}, {type(self.module).__name__}, {sizes})"

    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length d_model"]:
        """Hidden states after the last layer.

        `embed` may round otherwise: on some CPUs it has products of its own, see
        `layers.x86`.

        Args:
          tokens: Token ids, special ones included; see `tokenize`.
          mask: True at real tokens, False at padding.

        Raises:
          ValueError: An id is beyond the table (not looked at while it is traced).
        """
        if not isinstance(tokens, jax.core.Tracer):
            self._check_range(np.asarray(tokens))
        return self.apply(self.params, tokens, mask)

    def apply(
        self,
        params: types.Params,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        *,
        layers: "int | str | Sequence[int]" = -1,
    ) -> Float[Array, "*layers batch length d_model"]:
        """`__call__` with other parameters, or other layers; pure and jittable."""
        chosen = forward.parse_layers(layers, self.num_layers)
        return forward.encode(self.module, params, tokens, mask, chosen)

    @property
    def num_layers(self) -> int:
        """Layers; there is one hidden state more."""
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
        return jnp.dtype(self.config.dtype).name

    @property
    def max_residues(self) -> int | None:
        """Longest protein the model has positions for; None if there is no limit."""
        limit = getattr(self.config, "max_length", None)
        special = len(self.prefix) + len(self.suffix)
        return None if limit is None else limit - special

    @property
    def cls_position(self) -> int | None:
        """Where [CLS] is in a row: 0 first, -1 last (XLNet); None without one."""
        if self.prefix[:1] == (self.vocabulary.cls_id,):
            return 0
        return -1 if self.suffix[-1:] == (self.vocabulary.cls_id,) else None

    def _check_range(self, tokens: np.ndarray) -> None:
        rows = self.config.vocab_size
        outside = np.argwhere((tokens < 0) | (tokens >= rows))
        if len(outside):
            at = tuple(outside[0].tolist())
            raise ValueError(
                f"tokens{list(at)} is {tokens[at]}; ids go from 0 to {rows - 1}, the "
                f"rows of the embedding table. {len(outside)} such in all."
            )

    def check_ids(self) -> None:
        """Raises ValueError if it is not known which id a residue has."""
        if self.unknown_ids:
            raise ValueError(self.unknown_ids)

    def tokenize(
        self, sequences: Iterable[str]
    ) -> tuple[Int[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """Token ids with special ones, padded on the right, and their mask.

        Args:
          sequences: A list, or what else gives sequences in order; as in `embed`.
        """
        if isinstance(sequences, str):
            raise ValueError(
                "tokenize takes a list of sequences; for a single one [sequence]."
            )
        residues = self._all_residues(sequences)
        longest = max(map(len, residues), default=0) + self._tokens.num_special
        rows = tuple(range(len(residues)))
        batch = batching.Batch(rows, len(rows), longest)
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
            count as X, lower case as upper case, and white space, gaps (`-` `.`) and a
            final `*` are taken out: no row is theirs. Nucleotides are embedded as
            residues, with a warning in the log.
          pool: None for a vector per residue; "mean" or "max" over the residues, or
            "cls", for one per protein.
          layers: A layer's number (-1 the last, 0 the embedded input), several, "all",
            or "last4" for the mean of the last four. Several give a leading axis.
          max_tokens: Tokens that go through the model at once, with padding; None
            chooses by device.
          progress: Whether to show a progress bar on stderr.

        Returns:
          Of several proteins a list of [residues, d_model], or with `pool` an array
          [proteins, d_model]. Of a single str its own array, [residues, d_model] or
          [d_model].

        Raises:
          ValueError: A sequence cannot be used; says which, where and why.
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
        chosen = runner.layers
        lead = (len(chosen.indices),) if chosen.combine == "stack" else ()
        if not vectors:
            return np.zeros((0, *lead, self.d_model), np.float32)
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
          Of a single str [layers, heads, length, length], of several proteins a list.

        Raises:
          ValueError: The family's attention has no such maps here; see
            `attention_maps`.
        """
        if not isinstance(sequences, str):
            # All are checked before the first is computed.
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
        """(id, vectors) of proteins in their order, holding one window in memory.

        Args:
          proteins: (id, residues) pairs, of any number; residues as in `embed`.
          pool: As in `embed`.
          layers: As in `embed`.
          window: Proteins that are sorted by length together.
          max_tokens: As in `embed`.
        """
        _check_count("window", window)
        runner = self.make_embedder(pool=pool, layers=layers, max_tokens=max_tokens)
        source = sequence_input.pairs(proteins)
        buckets, is_warned = None, False
        while some := list(itertools.islice(source, window)):
            residues = [self._residues(f"protein {name!r}", s) for name, s in some]
            is_warned = is_warned or nucleotides.warn_of(residues)
            if buckets is None:
                buckets = runner.buckets([len(x) for x in residues])
            vectors = _vectors(
                runner, residues, buckets, more_to_come=len(some) == window
            )
            yield from zip([name for name, _ in some], vectors, strict=True)

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

        What `prottrans embed` does, with the names and defaults of its flags.

        Args:
          source: FASTA, plain or compressed, or several in their order, as if they
            were one; "-" is standard input.
          output: File to write; its extension selects the format.
          per_residue: Whether to write a vector per residue; the default if
            `per_protein` is False.
          per_protein: Whether to write one vector per protein. With both, two files are
            written: OUTPUT.per_residue.h5 and OUTPUT.per_protein.h5.
          pool: How the vector of a protein is made: "mean" (the default), "max", "cls".
          layers: As in `embed`.
          output_dtype: "float16" or "float32"; by default float16 for vectors per
            residue and float32 for those per protein.
          batch_tokens: Tokens that go through the model at once, with padding; None
            chooses by device.
          max_batch: Limit of the proteins among these.
          max_length: Residues above which `long` says what is done; None: what the
            model has positions for, or no limit.
          long: "error", "skip", "chunk" or "truncate".
          chunk_overlap: Residues that neighbouring pieces share; None: a quarter of
            `max_length`.
          key: Under which name a protein is stored; see `embed.keys.make`.
          on_bad: What to do about a record that cannot be used: "error" or "skip".
          on_duplicate: About an id that comes again with another sequence: "error",
            "suffix" or "first".
          allow_nucleotides: Whether a file of A, C, G, T, U and N is one of proteins.
          reuse: HDF5 files with vectors of the same model that need not be computed
            again.
          resume: Whether to go on from what an earlier run left and from the output as
            it is, or to compute everything anew.
          overwrite: Whether to replace what another model or other settings made.
          commit_seconds: What was computed is committed at least this often, at first
            more often; a kill loses no more than that.
          devices: Devices to use in turn; None: all accelerators, or one CPU.
          progress: Whether to show a progress bar on stderr.

        Returns:
          What was done: counts, records left out, seconds, files.

        Raises:
          ValueError: The input or an option cannot be used; says which and why.
          files.locks.LockedError: Another process writes to this output.
          embed.job.DiskFullError: No space left; what was computed so far is kept.
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
        """What runs batches; arguments as in `embed.embedder.Embedder`."""
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

    def _residues(self, what: str, sequence: Any) -> bytes:
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


def _vectors(
    runner, residues, buckets, more_to_come=False, show=lambda done, total: None
) -> list[Any]:
    """Vectors of each of the sequences, in their order."""
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


def load_encoder(
    source: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    download: bool = False,
    revision: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    prefix: str | None = None,
    **overrides: Any,
) -> Encoder:
    """Loads the encoder of a model; see `Encoder`.

    Args:
      source: A folder made by `prottrans_jax.export` or in Hugging Face's layout, a
        repository of its hub, or a short name of `NAMES`; or whatever else
        `checkpoints.opening` reads: an own run, T5X, Mesh-TensorFlow. Of an ELECTRA
        that trains two models the encoder is the discriminator.
      dtype: Type of weights and products. None: bfloat16 on GPU and TPU, float32 on a
        CPU. int8: of the products with the layers' weights, see `kernels.quantized`;
        the
        rest is bfloat16.
      download: Whether a repository that is not in the local cache may be fetched.
      revision: Branch, tag or commit of the repository; None: "main".
      vocabulary: The tokenizer's file, for a model that lies without one: spiece.model,
        vocab.txt, tokenizer.json, vocabulary.json, or a folder with one of them; or
        "prot_t5" or "prot_bert" for theirs. Without it such a model takes token ids
        alone, and `embed` raises ValueError.
      prefix: Piece to put before each protein, such as "<AA2fold>" of ProstT5; there is
        no vector of it. After "<fold2AA>" letters are 3Di states.
      **overrides: Further fields of the model's configuration.

    Raises:
      FileNotFoundError: It is nowhere; names that are spelled alike are suggested.
      ValueError: Configuration and weights do not fit, ids do not fit the table, or
        there is no such prefix.
      checkpoints.CheckpointError: An own run has no sound checkpoint.
    """
    overrides["vocabulary"] = vocabulary
    found, dtype = _read(source, dtype, download, revision, overrides)
    found = opening.encoder_of(found)
    ids, before = _ids_of(found, prefix)
    module = opening.model_of(found)
    stored = frozen_params.subtree(found.params, layerwise.encoder_shapes(module))
    return Encoder(
        module=module,
        params=frozen_params.place(stored, jnp.dtype(dtype)),
        config=found.config,
        vocabulary=ids,
        prefix=before,
        suffix=found.suffix_ids,
        name=_plain_name(source),
        source=found.source,
        fingerprint=frozen_params.fingerprint(stored, _other_ids(found)),
        revision=_revision(found.source),
        prefix_piece=prefix or "",
        unknown_ids=found.unknown_ids,
    )


def _ids_of(
    found: families.Checkpoint, prefix: str | None
) -> tuple[vocabularies.Vocabulary, tuple[int, ...]]:
    """The vocabulary that proteins are read with, and the ids before them."""
    ids, before = found.vocabulary, found.prefix_ids
    if found.unknown_ids:
        return ids, before
    if prefix:
        ids, number = model_vocabularies.with_prefix(ids, prefix)
        before = (*before, number)
    elif found.own_vocabulary is not None:
        model_vocabularies.warn_of_unused(ids, found.family.vocabulary, found.source)
    special = (*before, *found.suffix_ids)
    model_vocabularies.check_rows(ids, special, found.config.vocab_size, found.source)
    return ids, before


def _other_ids(found: families.Checkpoint) -> vocabularies.Vocabulary | None:
    """The vocabulary if it makes other vectors than the family's ids would."""
    own, usual = found.own_vocabulary, found.family.vocabulary
    if own is None or not usual.num_sentinels:
        return own
    # T5s with ProtT5's ids and more pieces had its vocabulary in earlier versions.
    same = np.array_equal(own.byte_table, usual.byte_table) and (
        (own.pad_id, own.eos_id) == (usual.pad_id, usual.eos_id)
    )
    return None if same else own


@dataclasses.dataclass(frozen=True, eq=False)
class Model(frozen_params.Holder):
    """A whole model, decoder and heads included.

    Attributes:
      module: Linen model; `module.apply({"params": params}, ...)` gives its logits.
      params: Its parameters.
      config: Its configuration.
      vocabulary: Residues and special pieces by id.
      name: What it was loaded as.
      source: The folder it came from.
    """

    module: nn.Module
    params: types.Params
    config: Any
    vocabulary: vocabularies.Vocabulary
    name: str
    source: pathlib.Path

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {type(self.module).__name__})"

    def __call__(self, *inputs: Array, **keywords: Any) -> Any:
        """Logits; arguments are those of the module, dropout is off."""
        keywords.setdefault("deterministic", True)
        return self.module.apply({"params": self.params}, *inputs, **keywords)


def load_model(
    source: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    download: bool = False,
    revision: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    **overrides: Any,
) -> Model:
    """Loads a whole model with whatever heads its checkpoint has.

    Arguments and errors are those of `load_encoder`. A model takes token ids: where a
    folder has no vocabulary file, `Model.vocabulary` is the family's.
    """
    overrides["vocabulary"] = vocabulary
    found, dtype = _read(source, dtype, download, revision, overrides)
    return Model(
        module=opening.model_of(found),
        params=frozen_params.place(found.params, jnp.dtype(dtype)),
        config=found.config,
        vocabulary=found.vocabulary,
        name=_plain_name(source),
        source=found.source,
    )


def default_dtype() -> str:
    """bfloat16 where the device multiplies it natively, else float32."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _check_count(name: str, value: Any) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more.")


def _read(source, dtype, download, revision, overrides):
    dtype = default_dtype() if dtype is None else dtype
    try:
        jnp.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"dtype={dtype!r} is not known. Choose one of float32, bfloat16, float16, "
            "int8."
        ) from None
    try:
        place = NAMES.get(str(source), source)
        if revision is not None:
            _, place = opening.split(place)
            place = huggingface.find(place, download=download, revision=revision)
        found = opening.read(
            place,
            download=download,
            dtype=frozen_params.float_dtype(dtype),
            **overrides,
        )
    except FileNotFoundError as error:
        close = difflib.get_close_matches(str(source), NAMES, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        if str(source) in NAMES or not hint:
            raise
        raise FileNotFoundError(f"{error}{hint}") from None
    return found, dtype


def _plain_name(source: str | os.PathLike) -> str:
    if str(source) in NAMES:
        return str(source)
    _, place = opening.split(source)
    return pathlib.PurePath(os.path.abspath(place)).name


def _revision(folder: pathlib.Path) -> str:
    # The hub's cache: models--OWNER--NAME/snapshots/COMMIT.
    return folder.name if folder.parent.name == "snapshots" else ""
