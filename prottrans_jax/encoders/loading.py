"""Finds and loads frozen models, to embed proteins or to call in research code.

  encoder = load_encoder("prot_t5")
  vectors = encoder.embed(["PRTEINO", "SEQWENCE"])  # list of [residues, d_model]
  hidden = encoder(tokens, mask)  # a pure function of encoder.params

Needs neither TensorFlow, SeqIO nor torch.
"""

import contextlib
import difflib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from prottrans_jax import types
from prottrans_jax.checkpoints import opening
from prottrans_jax.embed import layerwise
from prottrans_jax.encoders import frozen_models, frozen_params
from prottrans_jax.interop import families, huggingface, layer_stacks
from prottrans_jax.interop import vocabularies as model_vocabularies
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.proteins import vocabulary as vocabularies


def load_encoder(
    source: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    download: bool = False,
    revision: str | None = None,
    sha256: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    prefix: str | None = None,
    **overrides: Any,
) -> frozen_models.Encoder:
    """Loads the encoder of a model; see `frozen_models.Encoder`.

    Args:
      source: A folder made by `prottrans_jax.export` or in Hugging Face's layout, a
        repository of its hub, a short name in
        `huggingface.NAMES`, or any other checkpoint that
        `checkpoints.opening` reads: a run of this library, T5X, Mesh-TensorFlow. For
        an ELECTRA run with two models, the encoder is the discriminator.
      dtype: Type of weights and products. None: bfloat16 on GPU and TPU, float32 on a
        CPU. int8: products with the layers' weights are int8, see
        `kernels.quantized`; the rest is bfloat16.
      download: Whether to fetch a repository that is not in the local cache.
      revision: Branch, tag or commit of the repository; None: "main", or any revision
        in the cache.
      sha256: SHA-256 of the file of weights, or of several files in the order of their
        names, separated by commas; None: not compared.
      vocabulary: The tokenizer file, for a model without one: spiece.model, vocab.txt,
        tokenizer.json, vocabulary.json, or a folder with one of them; or "prot_t5" or
        "prot_bert" for the vocabulary of these models. Without a vocabulary a model
        accepts token ids only, and `embed` raises ValueError.
      prefix: Piece to put before each protein, such as "<AA2fold>" of ProstT5; it gets
        no vector. After "<fold2AA>" letters are 3Di states.
      **overrides: Further fields of the model's configuration, or of
        `layers.compute.ComputeConfig`.

    Raises:
      FileNotFoundError: There is no such model; suggests similar names.
      ValueError: Configuration and weights do not match, `sha256` is another one, ids
        exceed the embedding table, or there is no such prefix.
      manifests.CheckpointError: A run of this library has no intact checkpoint.
    """
    options = dict(
        download=download, revision=revision, sha256=sha256, vocabulary=vocabulary
    )
    with _read(source, dtype, options | overrides) as (checkpoint, dtype):
        return _encoder(checkpoint, dtype, prefix, _plain_name(source))


def encoder_in_training(
    model: Any, params: types.Params, name: str
) -> frozen_models.Encoder:
    """The encoder of a model that is being trained, in float32.

    Args:
      model: Model of an objective, e.g. `models.bert.Bert`.
      params: Its parameters in host memory, stacked or not.
      name: Name of the encoder.
    """
    config = model.config
    checkpoint = families.Checkpoint(
        family=opening.family_of(config),
        config=config,
        compute=compute_config.ComputeConfig(scan_layers=False),
        params=layer_stacks.convert(params, dtype=np.float32),
        stored_dtype=np.dtype(np.float32),
        source=pathlib.Path(name),
        form="in training",
    )
    return _encoder(checkpoint, "float32", None, name)


def _encoder(
    checkpoint: families.Checkpoint, dtype: DTypeLike, prefix: str | None, name: str
) -> frozen_models.Encoder:
    checkpoint = opening.encoder_of(checkpoint)
    ids, prefix_ids = _ids_of(checkpoint, prefix)
    module = opening.model_of(checkpoint)
    shapes = layerwise.encoder_shapes(module)
    stored = frozen_params.subtree(checkpoint.params, shapes)
    return frozen_models.Encoder(
        module=module,
        params=frozen_params.place(stored, jnp.dtype(dtype)),
        config=checkpoint.config,
        vocabulary=ids,
        prefix=prefix_ids,
        suffix=checkpoint.suffix_ids,
        name=name,
        source=checkpoint.source,
        fingerprint=frozen_params.fingerprint(stored, _other_ids(checkpoint)),
        revision=_revision(checkpoint.source),
        prefix_piece=prefix or "",
        unknown_ids=checkpoint.unknown_ids,
    )


def _ids_of(
    checkpoint: families.Checkpoint, prefix: str | None
) -> tuple[vocabularies.Vocabulary, tuple[int, ...]]:
    """The vocabulary for proteins, and the ids before a protein."""
    ids, prefix_ids = checkpoint.vocabulary, checkpoint.prefix_ids
    if checkpoint.unknown_ids:
        return ids, prefix_ids
    source = checkpoint.source
    if prefix:
        ids, number = model_vocabularies.with_prefix(ids, prefix)
        prefix_ids = (*prefix_ids, number)
    elif checkpoint.own_vocabulary is not None:
        model_vocabularies.warn_of_unused(ids, checkpoint.family.vocabulary, source)
    special_ids = (*prefix_ids, *checkpoint.suffix_ids)
    num_rows = checkpoint.config.vocab_size
    model_vocabularies.check_rows(ids, special_ids, num_rows, source)
    return ids, prefix_ids


def _other_ids(checkpoint: families.Checkpoint) -> vocabularies.Vocabulary | None:
    """The checkpoint's vocabulary if it gives other vectors than the family's."""
    own, usual = checkpoint.own_vocabulary, checkpoint.family.vocabulary
    if own is None or not usual.num_sentinels:
        return own
    # Earlier versions used ProtT5's vocabulary for T5s with ProtT5's ids and more
    # pieces: keep their fingerprints.
    same = np.array_equal(own.byte_table, usual.byte_table) and (
        (own.pad_id, own.eos_id) == (usual.pad_id, usual.eos_id)
    )
    return None if same else own


def load_model(
    source: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    download: bool = False,
    revision: str | None = None,
    sha256: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    **overrides: Any,
) -> frozen_models.Model:
    """Loads a model with its decoder and all heads of the checkpoint.

    Arguments and errors are those of `load_encoder`. A model accepts token ids: without
    a vocabulary file, `frozen_models.Model.vocabulary` is the family's.
    """
    options = dict(
        download=download, revision=revision, sha256=sha256, vocabulary=vocabulary
    )
    with _read(source, dtype, options | overrides) as (checkpoint, dtype):
        return frozen_models.Model(
            module=opening.model_of(checkpoint),
            params=frozen_params.place(checkpoint.params, jnp.dtype(dtype)),
            config=checkpoint.config,
            vocabulary=checkpoint.vocabulary,
            name=_plain_name(source),
            source=checkpoint.source,
            prefix=checkpoint.prefix_ids,
            suffix=checkpoint.suffix_ids,
            fingerprint=frozen_params.fingerprint(
                checkpoint.params, _other_ids(checkpoint)
            ),
            unknown_ids=checkpoint.unknown_ids,
        )


def default_dtype() -> str:
    """bfloat16 where the device multiplies it natively, else float32."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@contextlib.contextmanager
def _read(source, dtype, options):
    """Yields a checkpoint, whose files of a bucket are copied for the block."""
    dtype = default_dtype() if dtype is None else dtype
    try:
        jnp.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"dtype={dtype!r} is not known. Choose one of float32, bfloat16, float16, "
            "int8."
        ) from None
    try:
        with opening.opened(
            source, dtype=frozen_params.float_dtype(dtype), **options
        ) as checkpoint:
            yield checkpoint, dtype
    except FileNotFoundError as error:
        similar = difflib.get_close_matches(str(source), huggingface.NAMES, n=3)
        hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
        if str(source) in huggingface.NAMES or not hint:
            raise
        raise FileNotFoundError(f"{error}{hint}") from None


def _plain_name(source: str | os.PathLike) -> str:
    if str(source) in huggingface.NAMES:
        return str(source)
    _, location = opening.split(source)
    return pathlib.PurePath(os.path.abspath(location)).name


def _revision(folder: pathlib.Path) -> str:
    # The hub's cache: models--OWNER--NAME/snapshots/COMMIT.
    return folder.name if folder.parent.name == "snapshots" else ""
