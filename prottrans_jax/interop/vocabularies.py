"""Ids of residues in models of other libraries.

They come from the folder's vocabulary file (`vocabulary_files`) or from a file that the
caller names. Without a file, ids are known for the models that the ProtTrans authors
released, and assumed for T5s with ProtT5's number of rows. For all others they are
unknown, and conversion of residues to ids raises an error.

A SentencePiece model that marks the beginning of words with U+2581 has two pieces per
residue: inside a word and at its beginning. Each residue is a word, so it has the
second; the first is called ``##A`` here, as in BERT.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from absl import logging
from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import folders, paths
from prottrans_jax.interop import sentencepiece, vocabulary_files
from prottrans_jax.proteins import vocabulary

JSON, FILES = vocabulary_files.JSON, vocabulary_files.FILES
# Further files of a tokenizer, which supplement those of `FILES`.
BESIDE = vocabulary_files.COMPANIONS
# `Vocabulary.byte_table` holds ids of one byte.
_MAX_PIECES = 256
_SEVERAL_LETTERS = re.compile(rf"{sentencepiece.SPACE}?[A-Z]{{2,}}")
_ROLES = ("pad", "unk", "eos", "mask", "cls", "sep")
# Vocabularies that may be named instead of a file. For the released models of other
# families the order of the residues is unknown.
NAMED: Mapping[str, vocabulary.Vocabulary] = {
    "prot_t5": vocabulary.PROT_T5,
    "prot_bert": vocabulary.PROT_BERT,
}
# Pieces that may be put before a protein, and usual special pieces of tokenizers.
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_USUAL = re.compile(
    r"<(row_\d+|unused\w*|extra_id_\d+|s|/s|pad|unk|mask|cls|sep|bos|eos|eod|eop)>"
    r"|\[(unused\d+|PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]"
)
# Parameters with a row per id: end of the name -> axis of the rows.
_ROWS = {
    "token_embedder/embedding": 0,
    "token/embedding": 0,
    "lm_head/bias": 0,
    "logits_bias": 0,
    "logits_dense/kernel": 1,
}


def read(
    folder: pathlib.Path, family: vocabulary.Vocabulary, num_rows: int
) -> vocabulary.Vocabulary | None:
    """The vocabulary of a folder, or None if it has no vocabulary file.

    Letters without a piece are read as X; without a piece for X, as the unknown piece.

    Args:
      folder: In Hugging Face's layout.
      family: Default vocabulary of the family, whose special pieces are needed.
      num_rows: Rows of the embedding table.

    Raises:
      ValueError: A file is damaged, or not a vocabulary of single residues.
    """
    path = vocabulary_files.find(folder)
    if path is None:
        return None
    return _fit(vocabulary_files.read(path), family, num_rows)


def of_ids(
    source: pathlib.Path,
    ids: Mapping[str, int],
    family: vocabulary.Vocabulary,
    num_rows: int,
) -> vocabulary.Vocabulary:
    """The vocabulary from a table of ids; other arguments as in `read`."""
    return _fit(vocabulary_files.of_ids(source, ids), family, num_rows)


def load(
    source: str | os.PathLike, family: vocabulary.Vocabulary, num_rows: int
) -> vocabulary.Vocabulary:
    """The vocabulary that the caller specifies.

    Args:
      source: A vocabulary file, a folder with one, or a name in `NAMED`.
      family: Default vocabulary of the family.
      num_rows: Rows of the embedding table.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, has more ids than rows, or lacks pieces.
    """
    place = paths.place(source, "--vocabulary")
    with folders.local_copy(place) as path:
        return _load(path, source, family, num_rows)


def _load(
    path: pathlib.Path,
    source: str | os.PathLike,
    family: vocabulary.Vocabulary,
    num_rows: int,
) -> vocabulary.Vocabulary:
    if str(source) in NAMED and not path.exists():
        named = NAMED[str(source)]
        if named.sentinel != family.sentinel or named.size > num_rows:
            raise ValueError(
                f"--vocabulary {source}: {named.name} has {named.size} ids; this model "
                f"belongs to {family.name}'s family and has {num_rows} rows."
            )
        # ALBERT, XLNet and Transformer-XL have other special pieces around a protein.
        if any(getattr(named, role) != getattr(family, role) for role in _ROLES):
            raise ValueError(
                f"--vocabulary {source}: its special pieces differ from those of "
                f"{family.name}. Name the tokenizer's file."
            )
        return named
    try:
        return _fit(vocabulary_files.read(path), family, num_rows)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--vocabulary: {error} It takes {', '.join(FILES)}, or one of the names "
            f"{', '.join(NAMED)}."
        ) from None


def unknown(source: pathlib.Path, family: vocabulary.Vocabulary, num_rows: int) -> str:
    """Message: why the ids of residues are unknown, and what to do about it."""
    has = "the checkpoint has"
    if source.is_dir():
        names = sorted(path.name for path in source.iterdir())
        has = f"it has {', '.join(names[:6])}{', ...' * (len(names) > 6)}, and"
    near = vocabulary_files.near(source)
    hint = f" There is {near[0]}." if near else ""
    return (
        f"{source} has no vocabulary file (none of {', '.join(FILES)}): {has} "
        f"{num_rows} rows where {family.name} has {family.size} ids, so the ids of "
        "residues are unknown. Name the tokenizer's file with --vocabulary FILE (in "
        f"Python vocabulary=FILE), or put the file into the folder.{hint}"
    )


def _fit(
    pieces: vocabulary_files.Pieces, family: vocabulary.Vocabulary, num_rows: int
) -> vocabulary.Vocabulary:
    """The family's vocabulary with these pieces."""
    names = _names(pieces)
    if family.num_sentinels:
        names = _with_sentinels(names, pieces.sentinels, num_rows)
        # Our small models may have no rows for sentinels, which proteins do not need.
        if all(name.startswith("<extra_id_") for name in names[num_rows:]):
            names = names[:num_rows]
    if len(names) > num_rows:
        raise ValueError(
            f"{pieces.path} has {len(names)} pieces, the embedding table has "
            f"{num_rows} rows: it belongs to another model. Name the model's own file "
            "with --vocabulary FILE (in Python vocabulary=FILE)."
        )
    # A T5's files need not list its sentinels.
    if names == family.pieces[: max(len(names), family.size - family.num_sentinels)]:
        return family
    _check_residues(pieces, names)
    roles: dict[str, Any] = {
        role: _piece_of(role, piece, names, pieces.roles)
        for role in _ROLES
        if (piece := getattr(family, role)) is not None
    }
    needed = ["pad", "unk", *(("eos",) if family.cls is None else ("cls", "sep"))]
    missing = [f"{x} ({getattr(family, x)})" for x in needed if roles[x] is None]
    if missing:
        raise ValueError(
            f"{pieces.path} has no piece for {', '.join(missing)}, which "
            f"{family.name}'s tokenizer has."
        )
    x = "X" if "X" in names else str(roles["unk"])
    if x != "X" and family.x == "X":
        logging.warning(
            "%s has no piece for X: X, %s are read as %s.",
            pieces.path,
            ", ".join(vocabulary.READ_AS_X),
            x,
        )
    return dataclasses.replace(
        family,
        name=f"{family.name} ({pieces.path.name})",
        pieces=names,
        x=x,
        **roles,
    )


def _piece_of(
    role: str, usual: str, names: Sequence[str], roles: Mapping[str, str]
) -> str | None:
    """The special piece of a role: the family's, else the tokenizer's."""
    candidates = (usual, roles.get(role))
    return next((piece for piece in candidates if piece in names), None)


def _with_sentinels(
    names: tuple[str, ...], count: int, num_rows: int
) -> tuple[str, ...]:
    """Adds the sentinels that T5's tokenizer puts after its pieces, if they fit."""
    rows = [name.startswith("<row_") for name in names]
    own = rows.index(True) if True in rows else len(names)
    free = all(rows[own : own + count])
    if not count or "<extra_id_0>" in names or own + count > num_rows or not free:
        return names
    sentinels = vocabulary_files.sentinel_texts(count)
    return (*names[:own], *sentinels, *names[own + count :])


def tags(vocab: vocabulary.Vocabulary) -> tuple[str, ...]:
    """Pieces that may be put before a protein, such as ``<AA2fold>``."""
    roles = {getattr(vocab, role) for role in _ROLES}
    return tuple(
        piece
        for piece in vocab.pieces
        if _TAG.fullmatch(piece) and piece not in roles and not _USUAL.fullmatch(piece)
    )


def warn_of_unused(
    vocab: vocabulary.Vocabulary,
    family: vocabulary.Vocabulary,
    source: str | os.PathLike,
) -> None:
    """Logs the pieces of a vocabulary that its family lacks and that are not used."""
    unused = [piece for piece in tags(vocab) if piece not in family.pieces]
    states = [p for p in vocab.pieces if len(p) == 1 and p.isascii() and p.islower()]
    if not unused and not states:
        return
    parts = [", ".join(unused[:6]) + ", ..." * (len(unused) > 6)] if unused else []
    parts += [f"{len(states)} lower-case letters"] if states else []
    logging.warning(
        "%s: its vocabulary also has %s, which are not used: proteins are read as "
        "amino acids, without a piece before them.%s",
        source,
        " and ".join(parts),
        f" --prefix '{unused[0]}' puts that piece before each." if unused else "",
    )


def with_prefix(
    vocab: vocabulary.Vocabulary, prefix: str
) -> tuple[vocabulary.Vocabulary, int]:
    """The vocabulary for proteins after a prefix piece, and the piece's id.

    After ``<fold2AA>``, and other pieces whose name begins with fold2, letters are 3Di
    states: in either case they are the vocabulary's lower-case pieces.

    Raises:
      ValueError: There is no such piece, or there are no lower-case ones.
    """
    if prefix not in vocab.pieces:
        prefixes = tags(vocab)
        raise ValueError(
            f"prefix={prefix!r} (--prefix) is not a piece of {vocab.name}. "
            + (
                f"It has {', '.join(prefixes[:8])}."
                if prefixes
                else "It has no such pieces."
            )
        )
    number = vocab.pieces.index(prefix)
    if not prefix.strip("<>[]").lower().startswith("fold2"):
        return vocab, number
    missing = [x for x in vocabulary.STANDARD.lower() if x not in vocab.pieces]
    if missing:
        raise ValueError(
            f"prefix={prefix!r} (--prefix) is for 3Di states, but {vocab.name} has no "
            f"lower-case {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}."
        )
    x = "x" if "x" in vocab.pieces else vocab.unk
    return dataclasses.replace(vocab, lower=True, x=x), number


def check_rows(
    vocab: vocabulary.Vocabulary,
    special_ids: Sequence[int],
    num_rows: int,
    source: str | os.PathLike,
) -> None:
    """Raises ValueError if an id that a protein needs is not a row of the table."""
    used = {chr(b): int(vocab.byte_table[b]) for b in vocabulary.LETTERS.encode()}
    used |= {vocab.pieces[i]: i for i in (*special_ids, vocab.pad_id)}
    beyond = [f"{piece} {i}" for piece, i in used.items() if i >= num_rows]
    if beyond:
        raise ValueError(
            f"{source}: {vocab.name} has ids beyond the {num_rows} rows of the "
            f"embedding table: {', '.join(beyond)}. Name the model's own vocabulary "
            "with --vocabulary FILE (in Python vocabulary=FILE)."
        )


def write(
    folder: pathlib.Path,
    vocab: vocabulary.Vocabulary,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
) -> pathlib.Path:
    """Writes `vocabulary.json`: ids of all pieces, and the ids around a protein."""
    path = folder / JSON
    content = {
        "name": vocab.name,
        "pieces": {piece: i for i, piece in enumerate(vocab.pieces)},
        "before_residues": list(prefix_ids),
        "after_residues": list(suffix_ids),
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def renumber(
    params: types.Params, stored: vocabulary.Vocabulary, target: vocabulary.Vocabulary
) -> types.Params:
    """Reorders the rows of embedding tables and biases for another vocabulary.

    Pieces are matched by name; X and the unknown piece replace each other if one is
    missing. Pieces of `ours` that `theirs` lacks get unused rows.

    Raises:
      ValueError: There are fewer rows than `ours` has ids.
    """
    if stored == target:
        return params
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, array in flat.items():
        for end, axis in _ROWS.items():
            if name == end or name.endswith(f"/{end}"):
                order = _order(stored, target, array.shape[axis])
                flat[name] = np.take(array, order, axis=axis)
    return traverse_util.unflatten_dict(flat, sep="/")


def _order(
    stored: vocabulary.Vocabulary, target: vocabulary.Vocabulary, num_rows: int
) -> list[int]:
    """For each row of ours, the index of the row in the checkpoint."""
    if num_rows < target.size:
        raise ValueError(
            f"The checkpoint's {stored.name} has {num_rows} rows, {target.name} has "
            f"{target.size} ids: the table needs as many rows."
        )
    ids = {piece: i for i, piece in enumerate(stored.pieces)}
    ids.setdefault("X", stored.x_id)
    for role in _ROLES:
        piece, other = getattr(target, role), getattr(stored, role)
        if piece is not None and other is not None:
            ids[piece] = ids[other]
    if target.x == target.unk:
        ids[target.unk] = stored.x_id
    order = [ids.get(piece) for piece in target.pieces]
    order += [None] * (num_rows - target.size)
    free = iter(sorted(set(range(num_rows)) - set(order)))
    return [next(free) if row is None else row for row in order]


def _names(pieces: vocabulary_files.Pieces) -> tuple[str, ...]:
    """Names of pieces in `Vocabulary`: a single letter is a residue.

    Upper-case letters are amino acids; lower-case letters depend on the model.
    """
    names = []
    texts = set(pieces.texts)
    for text, usable in zip(pieces.texts, pieces.usable, strict=True):
        letter = text.removeprefix(sentencepiece.SPACE) if pieces.marked else text
        is_letter = len(letter) == 1 and letter.isascii() and letter.isalpha()
        inside = pieces.marked and text == letter
        if letter.islower() and f"{sentencepiece.SPACE}{letter}" not in texts:
            inside = False  # An added token: matched without the mark.
        if not is_letter:
            names.append(text)
        elif not usable:
            names.append(f"<unused_{letter}>")
        elif inside:
            names.append(f"##{letter}")
        else:
            names.append(letter)
    return tuple(names)


def _check_residues(pieces: vocabulary_files.Pieces, names: tuple[str, ...]) -> None:
    """Raises ValueError unless residues and pieces correspond one to one."""
    several = [text for text in pieces.texts if _SEVERAL_LETTERS.fullmatch(text)]
    if several:
        raise ValueError(
            f"{pieces.path} has {len(several)} pieces of several residues, such as "
            f"{several[0]!r}. Models whose tokens are not single residues are not "
            "supported."
        )
    missing = [letter for letter in vocabulary.STANDARD if letter not in names]
    if missing:
        raise ValueError(
            f"{pieces.path} has no piece for the residues {', '.join(missing)}. Is it "
            "the vocabulary of a protein model, in upper case?"
        )
    if pieces.add_space and not pieces.marked:
        raise ValueError(
            f"{pieces.path}: residues have pieces inside words only, but every text "
            "begins with a space, so the first token would not be a residue."
        )
    if len(names) > _MAX_PIECES:
        raise ValueError(
            f"{pieces.path} has {len(names)} pieces, more than the limit of "
            f"{_MAX_PIECES} for a vocabulary of single residues."
        )
