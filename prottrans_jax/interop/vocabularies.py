"""Ids of a Hugging Face folder's own vocabulary.

The first of these files that a folder has says which id a residue has; without any the
ids are those that `prottrans_jax.vocabulary` has for the family.

    vocabulary.json    what this library's exports hold
    spiece.model       T5, ALBERT, XLNet: SentencePiece
    vocab.txt          BERT, ELECTRA: a piece a line
    tokenizer.json     what transformers 5 saves

A SentencePiece model that begins words with U+2581 has two pieces a residue: inside a
word and at its beginning. Residues are words of their own, so theirs is the second; the
first is called ``##A`` here, as BERT does.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

from absl import logging
from flax import traverse_util
import numpy as np

from prottrans_jax import types, vocabulary
from prottrans_jax.interop import sentencepiece

JSON = "vocabulary.json"
FILES = (JSON, "spiece.model", "vocab.txt", "tokenizer.json")
# `Vocabulary.byte_table` holds ids of one byte.
_MAX_PIECES = 256
_SEVERAL_LETTERS = re.compile(rf"{sentencepiece.SPACE}?[A-Z]{{2,}}")
_ROLES = ("pad", "unk", "eos", "mask", "cls", "sep")
# Parameters with a row per id: the end of their name, and which axis.
_ROWS = {
    "token_embedder/embedding": 0,
    "token/embedding": 0,
    "lm_head/bias": 0,
    "logits_bias": 0,
    "logits_dense/kernel": 1,
}


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Pieces by id, and whether residues are those that begin a word."""

    path: pathlib.Path
    texts: tuple[str, ...]
    usable: tuple[bool, ...]
    marked: bool
    add_space: bool = False


def read(
    folder: pathlib.Path, family: vocabulary.Vocabulary, num_rows: int
) -> vocabulary.Vocabulary | None:
    """The vocabulary of a folder, or None if no file there tells.

    Letters without a piece of their own are read as X is, X itself without one as the
    unknown piece.

    Args:
      folder: In Hugging Face's layout.
      family: What the family has by default: its special pieces are asked for.
      num_rows: Rows of the embedding table.

    Raises:
      ValueError: A file there is damaged, or not one of single residues.
    """
    pieces = _read_pieces(folder)
    if pieces is None:
        return None
    if family.num_sentinels:
        # ProtT5's objectives and sentinels are written for the one vocabulary.
        _check_same(pieces, family)
        return family
    if len(pieces.texts) > num_rows:
        raise ValueError(
            f"{pieces.path} has {len(pieces.texts)} pieces, the embedding table has "
            f"{num_rows} rows. It is another model's."
        )
    names = _names(pieces)
    if names == family.pieces:
        return family
    _check_residues(pieces, names)
    missing = [
        f"{role} ({piece})"
        for role in ("pad", "unk", "cls", "sep")
        if (piece := getattr(family, role)) is not None and piece not in names
    ]
    if missing:
        raise ValueError(
            f"{pieces.path} has no piece for {', '.join(missing)}, which "
            f"{family.name}'s tokenizer has."
        )
    if "X" not in names and family.x == "X":
        logging.warning(
            "%s has no piece for X: X, %s are read as %s.",
            pieces.path,
            ", ".join(vocabulary.READ_AS_X),
            family.unk,
        )
    return dataclasses.replace(
        family,
        name=f"{family.name} ({pieces.path.name})",
        pieces=names,
        x="X" if "X" in names else family.unk,
        eos=family.eos if family.eos in names else None,
        mask=family.mask if family.mask in names else None,
    )


def write(
    folder: pathlib.Path,
    vocab: vocabulary.Vocabulary,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
) -> pathlib.Path:
    """Writes `vocabulary.json`: the id of every piece, and those around residues."""
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
    params: types.Params, theirs: vocabulary.Vocabulary, ours: vocabulary.Vocabulary
) -> types.Params:
    """Parameters of the same model for other ids: rows of tables and biases move.

    Pieces go together by name, X and the unknown piece for want of one another. Pieces
    of ours that they lack get rows that are not in use.

    Raises:
      ValueError: There are fewer rows than `ours` has ids.
    """
    if theirs == ours:
        return params
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, array in flat.items():
        for end, axis in _ROWS.items():
            if name == end or name.endswith(f"/{end}"):
                order = _order(theirs, ours, array.shape[axis])
                flat[name] = np.take(array, order, axis=axis)
    return traverse_util.unflatten_dict(flat, sep="/")


def _order(
    theirs: vocabulary.Vocabulary, ours: vocabulary.Vocabulary, num_rows: int
) -> list[int]:
    """Which of their rows becomes each row of ours."""
    if num_rows < ours.size:
        raise ValueError(
            f"The checkpoint's {theirs.name} has {num_rows} rows, {ours.name} has "
            f"{ours.size} ids: a table of that many rows is needed."
        )
    ids = {piece: i for i, piece in enumerate(theirs.pieces)}
    ids.setdefault("X", theirs.x_id)
    for role in _ROLES:
        piece, other = getattr(ours, role), getattr(theirs, role)
        if piece is not None and other is not None:
            ids[piece] = ids[other]
    if ours.x == ours.unk:
        ids[ours.unk] = theirs.x_id
    order = [ids.get(piece) for piece in ours.pieces]
    order += [None] * (num_rows - ours.size)
    free = iter(sorted(set(range(num_rows)) - set(order)))
    return [next(free) if row is None else row for row in order]


def _read_pieces(folder: pathlib.Path) -> _Pieces | None:
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        if name == "spiece.model":
            return _read_sentencepiece(path)
        if name == "vocab.txt":
            lines = path.read_text(encoding="utf-8").split()
            return _Pieces(path, tuple(lines), (True,) * len(lines), marked=False)
        content = _read_json(path)
        if name == JSON:
            return _from_ids(path, _mapping(path, content, "pieces"))
        model = _mapping(path, content, "model")
        pieces = model.get("vocab")
        added = {x["content"]: x["id"] for x in content.get("added_tokens", ())}
        if isinstance(pieces, Mapping):
            return _from_ids(path, {**pieces, **added})
        if isinstance(pieces, list) and model.get("type") == "Unigram":
            ids = {text: i for i, (text, _) in enumerate(pieces)}
            found = _from_ids(path, {**ids, **added})
            # Written of a SentencePiece model, so a space comes first.
            return dataclasses.replace(
                found, marked=_has_marks(found.texts), add_space=True
            )
        raise ValueError(
            f"{path}: a model of type {model.get('type')!r} is not known here. Put the "
            "tokenizer's spiece.model or vocab.txt beside it."
        )
    return None


def _read_sentencepiece(path: pathlib.Path) -> _Pieces:
    model = sentencepiece.read(path)
    kinds = (sentencepiece.Kind.NORMAL, sentencepiece.Kind.USER_DEFINED)
    texts = tuple(piece.text for piece in model.pieces)
    return _Pieces(
        path,
        texts,
        tuple(piece.kind in kinds for piece in model.pieces),
        marked=_has_marks(texts),
        add_space=model.add_space,
    )


def _has_marks(texts: Sequence[str]) -> bool:
    marked = [f"{sentencepiece.SPACE}{letter}" for letter in vocabulary.STANDARD]
    return not set(marked).isdisjoint(texts)


def _from_ids(path: pathlib.Path, ids: Mapping[str, int]) -> _Pieces:
    texts = [f"<row_{i}>" for i in range(1 + max(ids.values(), default=-1))]
    for text, i in ids.items():
        texts[i] = text
    return _Pieces(path, tuple(texts), (True,) * len(texts), marked=False)


def _read_json(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is no JSON object.")
    return content


def _mapping(path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} has no object {key!r}.")
    return value


def _names(pieces: _Pieces) -> tuple[str, ...]:
    """Pieces as `Vocabulary` has them: a letter alone is a residue."""
    names = []
    for text, usable in zip(pieces.texts, pieces.usable, strict=True):
        letter = text.removeprefix(sentencepiece.SPACE) if pieces.marked else text
        is_letter = len(letter) == 1 and letter.isascii() and letter.isupper()
        if not is_letter:
            names.append(text)
        elif not usable:
            names.append(f"<unused_{letter}>")
        elif pieces.marked and text == letter:
            names.append(f"##{letter}")
        else:
            names.append(letter)
    return tuple(names)


def _check_residues(pieces: _Pieces, names: tuple[str, ...]) -> None:
    """Raises unless every residue is one piece, and no piece is several residues."""
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
            "a model of proteins, in upper case?"
        )
    if pieces.add_space and not pieces.marked:
        raise ValueError(
            f"{pieces.path}: residues have pieces inside words only, but every text "
            "begins with a space: its first token would be none of a residue."
        )
    if len(names) > _MAX_PIECES:
        raise ValueError(
            f"{pieces.path} has {len(names)} pieces, a vocabulary of single residues "
            f"at most {_MAX_PIECES}."
        )


def _check_same(pieces: _Pieces, family: vocabulary.Vocabulary) -> None:
    names = _names(pieces)
    ids = {name: i for i, name in reversed(list(enumerate(names)))}
    wanted = [*vocabulary.STANDARD, family.x, family.pad, family.unk]
    wanted += [family.eos] if family.eos is not None else []
    ours = {piece: i for i, piece in enumerate(family.pieces)}
    other = [
        f"{piece} {ids.get(piece, 'missing')} (here {ours[piece]})"
        for piece in wanted
        if ids.get(piece) != ours[piece]
    ]
    if other:
        raise ValueError(
            f"{pieces.path} has other ids than {family.name}: {', '.join(other[:4])}"
            f"{', ...' if len(other) > 4 else ''}; {len(other)} in all. Its model "
            "would take residues for others: T5 is read with that vocabulary alone."
        )
