"""Token ids of a checkpoint: from a file, of a released model, or unknown.

Ids of the ProtTrans authors' ProtT5, ProtBert and ProtElectra need no file. Such a
checkpoint is recognised by the repository's name in the hub's cache, by the origin that
transformers records when fine-tuning, or by its sizes, which are unique.
"""

import dataclasses
import os

from absl import logging

from prottrans_jax.interop import families, vocabularies
from prottrans_jax.proteins import vocabulary

_ORGANISATION = "Rostlab"
# Layers, heads, d_model and d_ff, of Elnaggar et al. 2021, table 2; of ProtElectra the
# discriminator and the generator.
_SIZES = {
    "t5": {(24, 32, 1024, 16384), (24, 128, 1024, 65536)},
    "bert": {(30, 16, 1024, 4096)},
    "electra": {(30, 16, 1024, 4096), (30, 4, 256, 1024)},
}
# Families in which other models, with other ids, also have the released model's number
# of rows.
_COMMON_SIZES = ("bert", "electra")


def named(
    checkpoint: families.Checkpoint, source: str | os.PathLike
) -> families.Checkpoint:
    """The checkpoint with the vocabulary of the caller; see `vocabularies.load`."""
    usual, num_rows = checkpoint.family.vocabulary, checkpoint.config.vocab_size
    return _with_ids(checkpoint, vocabularies.load(source, usual, num_rows))


def of_folder(checkpoint: families.Checkpoint) -> families.Checkpoint:
    """The checkpoint with its folder's vocabulary file; without one, as `assumed`."""
    usual, num_rows = checkpoint.family.vocabulary, checkpoint.config.vocab_size
    ids = vocabularies.read(checkpoint.source, usual, num_rows)
    return assumed(checkpoint) if ids is None else _with_ids(checkpoint, ids)


def of_notes(checkpoint: families.Checkpoint) -> families.Checkpoint:
    """The checkpoint with the ids in its `side_notes`; without them, as `assumed`."""
    pieces = checkpoint.attributes.get("pieces")
    if pieces is None:
        return assumed(checkpoint)
    usual, num_rows = checkpoint.family.vocabulary, checkpoint.config.vocab_size
    ids = vocabularies.of_ids(checkpoint.source, pieces, usual, num_rows)
    return _with_ids(checkpoint, ids)


def assumed(checkpoint: families.Checkpoint) -> families.Checkpoint:
    """A checkpoint without a vocabulary file: ids of a released model, or unknown."""
    usual, num_rows = checkpoint.family.vocabulary, checkpoint.config.vocab_size
    if _is_released(checkpoint):
        return checkpoint
    if num_rows == usual.size and checkpoint.family.name not in _COMMON_SIZES:
        # ProtT5's 28 pieces and T5's 100 sentinels make 128 rows.
        warning = "If that is wrong, name the tokenizer's file with --vocabulary."
        if not usual.num_sentinels:
            warning = (
                "These are this library's own ids. Those of the released model are in "
                "its spiece.model; name that with --vocabulary."
            )
        logging.warning(
            "%s has no vocabulary file: its %d rows are assumed to be %s's ids. %s",
            checkpoint.source,
            num_rows,
            usual.name,
            warning,
        )
        return checkpoint
    reason = vocabularies.unknown(checkpoint.source, usual, num_rows)
    return dataclasses.replace(checkpoint, unknown_ids=reason)


def _with_ids(
    checkpoint: families.Checkpoint, ids: vocabulary.Vocabulary
) -> families.Checkpoint:
    own = None if ids == checkpoint.family.vocabulary else ids
    return dataclasses.replace(checkpoint, own_vocabulary=own, unknown_ids="")


def _is_released(checkpoint: families.Checkpoint) -> bool:
    config, family = checkpoint.config, checkpoint.family
    if family.name not in _SIZES or config.vocab_size != family.vocabulary.size:
        return False
    origin = str(checkpoint.attributes.get("_name_or_path", ""))
    if origin.startswith(f"{_ORGANISATION}/prot_"):
        return True
    cached = f"models--{_ORGANISATION}--prot_"
    if any(part.startswith(cached) for part in checkpoint.source.parts):
        return True
    sizes = (config.num_layers, config.num_heads, config.d_model, config.d_ff)
    return sizes in _SIZES[family.name]
