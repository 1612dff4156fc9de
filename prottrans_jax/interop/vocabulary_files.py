"""Readers of tokenizer files: pieces and their ids.

    vocabulary.json    exports of this library
    spiece.model       T5, ALBERT, XLNet: SentencePiece
    vocab.txt          BERT, ELECTRA: one piece per line
    tokenizer.json     transformers 5
    vocab.json         {piece: id}

Further files of transformers hold added pieces (added_tokens.json,
tokenizer_config.json) and the names of special pieces (special_tokens_map.json).
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from prottrans_jax.files import json_text
from prottrans_jax.interop import sentencepiece
from prottrans_jax.proteins import vocabulary

JSON = "vocabulary.json"
# The first of these files in a folder determines the ids.
FILES = (JSON, "spiece.model", "vocab.txt", "tokenizer.json")
_ADDED, _SPECIAL, _CONFIG = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
COMPANIONS = (_ADDED, _SPECIAL, _CONFIG)
# Roles of special pieces such as `<pad>` or `[PAD]`.
_ROLES = ("pad", "unk", "eos", "mask", "cls", "sep")
# Number of sentinels that T5's tokenizer adds after its SentencePiece model.
_T5_SENTINELS = 100


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces by id.

    Attributes:
      path: The file.
      texts: The pieces; ids without a piece are called ``<row_ID>``.
      usable: Whether the tokenizer can produce the piece from a text.
      marked: Whether residues are the pieces that begin a word.
      add_space: Whether a space is put before a text.
      roles: Special pieces by role ("pad", "cls" ...), if a file has them.
      sentinels: Number of sentinels that T5's tokenizer adds; 0 if the file has them.
    """

    path: pathlib.Path
    texts: tuple[str, ...]
    usable: tuple[bool, ...]
    marked: bool
    add_space: bool = False
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sentinels: int = 0


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The vocabulary file of a folder, or None."""
    paths = [folder / name for name in FILES]
    return next((path for path in paths if path.is_file()), None)


def near(folder: pathlib.Path) -> list[pathlib.Path]:
    """Vocabulary files in the parent and the subfolders of a folder, for a hint."""
    places = [folder.resolve().parent]
    if folder.is_dir():
        places += sorted(path for path in folder.iterdir() if path.is_dir())
    return [place / name for place in places for name in FILES if _is_file(place, name)]


def _is_file(folder: pathlib.Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except OSError:
        return False


def read(path: pathlib.Path) -> Pieces:
    """Pieces of a vocabulary file of any supported kind and name, or of a folder's.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, or of an unknown kind.
    """
    if path.is_dir():
        file = find(path)
        if file is None:
            raise FileNotFoundError(
                f"{path} has no vocabulary file: none of {', '.join(FILES)}."
            )
        path = file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file.")
    if path.suffix == ".json":
        content = json_text.read_object(path)
        if "pieces" in content:
            return of_ids(path, _ids(path, content, "pieces"))
        if "model" in content:
            return _with_companions(_read_tokenizer_json(path, content))
        return _with_companions(of_ids(path, _checked(path, content)))
    if path.suffix == ".model":
        return _with_companions(_read_sentencepiece(path))
    return _with_companions(_read_lines(path))


def _read_lines(path: pathlib.Path) -> Pieces:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except ValueError as error:
        raise ValueError(
            f"{path} is not a text with one piece per line: {error}."
        ) from error
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty.")
    texts = tuple(line or f"<row_{i}>" for i, line in enumerate(lines))
    return Pieces(path, texts, (True,) * len(texts), marked=False)


def _read_sentencepiece(path: pathlib.Path) -> Pieces:
    model = sentencepiece.read(path)
    return Pieces(
        path,
        model.pieces,
        model.is_text,
        marked=_has_marks(model.pieces),
        add_space=model.add_space,
        sentinels=_T5_SENTINELS,
    )


def _read_tokenizer_json(path: pathlib.Path, content: Mapping[str, Any]) -> Pieces:
    model = content["model"]
    if not isinstance(model, Mapping):
        raise ValueError(f"{path} has no object 'model'.")
    try:
        added = {x["content"]: x["id"] for x in content.get("added_tokens") or ()}
        vocab, roles = _own_pieces(model), _roles(content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: not in the tokenizers library's format ({error!r})."
        ) from error
    if vocab is None:
        raise ValueError(
            f"{path}: a model of type {model.get('type')!r} is not supported. Put the "
            "tokenizer's spiece.model or vocab.txt beside it."
        )
    pieces = of_ids(path, _checked(path, {**vocab, **added}))
    pieces = dataclasses.replace(pieces, roles=roles)
    if isinstance(model["vocab"], Mapping):
        return pieces
    # Converted from a SentencePiece model: a space comes first unless disabled.
    return dataclasses.replace(
        pieces,
        marked=_has_marks(pieces.texts),
        add_space=_adds_space(content),
    )


def _own_pieces(model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Ids of a fast tokenizer's model; None if its type is not supported."""
    vocab = model.get("vocab")
    if isinstance(vocab, list) and model.get("type") == "Unigram":
        return {text: i for i, (text, _) in enumerate(vocab)}
    return vocab if isinstance(vocab, Mapping) else None


def _roles(content: Mapping[str, Any]) -> dict[str, str]:
    """Special pieces of a fast tokenizer by role."""
    roles = {}
    for token in content.get("added_tokens") or ():
        role = token["content"].strip("<>[]").lower()
        if token.get("special") and role in _ROLES:
            roles[role] = token["content"]
    if unknown := content["model"].get("unk_token"):
        roles["unk"] = unknown
    if padding := content.get("padding"):
        roles["pad"] = padding["pad_token"]
    frame = content.get("post_processor") or {}
    for step in (frame, *(frame.get("processors") or ())):
        roles |= {role: step[role][0] for role in ("cls", "sep") if role in step}
        single = [next(iter(part.items())) for part in step.get("single") or ()]
        special = [x["id"] if kind == "SpecialToken" else "" for kind, x in single]
        # BERT puts a special piece on either side of a text, T5 one after it.
        if special and special[0] and special[-1]:
            roles |= {"cls": special[0], "sep": special[-1]}
        elif special and special[-1]:
            roles["eos"] = special[-1]
    return roles


def _adds_space(content: Mapping[str, Any]) -> bool:
    """Whether a fast tokenizer's Metaspace puts a space before a text."""
    steps: list[Any] = [content.get("pre_tokenizer"), content.get("normalizer")]
    while steps:
        step = steps.pop()
        if not isinstance(step, Mapping):
            continue
        steps += step.get("pretokenizers") or step.get("normalizers") or []
        if step.get("type") == "Metaspace":
            never = step.get("prepend_scheme") == "never"
            return step.get("add_prefix_space", not never) and not never
        if step.get("type") == "Prepend":
            return True
    return False


def _with_companions(pieces: Pieces) -> Pieces:
    """Adds pieces and roles from the companion files in the same folder."""
    folder = pieces.path.parent
    config, special = (_read_if_there(folder / name) for name in (_CONFIG, _SPECIAL))
    try:
        added: dict[str, Any] = {
            token["content"]: int(number)
            for number, token in (config.get("added_tokens_decoder") or {}).items()
            if isinstance(token, Mapping) and "content" in token
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / _CONFIG} is damaged: added_tokens_decoder is not {{ID: TOKEN}} "
            f"({error!r})."
        ) from error
    added |= _read_if_there(folder / _ADDED)
    texts, usable = list(pieces.texts), list(pieces.usable)
    for text, number in _checked(folder / _ADDED, added).items():
        missing = 1 + number - len(texts)
        texts += [f"<row_{len(texts) + i}>" for i in range(missing)]
        usable += [True] * max(0, missing)
        if texts[number].startswith("<row_"):
            texts[number] = text
    roles = dict(pieces.roles)
    for name, token in {**config, **special}.items():
        piece = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(piece, str):
            roles[name.removesuffix("_token")] = piece
    extra = config.get("extra_ids", pieces.sentinels)
    return dataclasses.replace(
        pieces,
        texts=tuple(texts),
        usable=tuple(usable),
        roles=roles,
        sentinels=extra if pieces.sentinels and isinstance(extra, int) else 0,
    )


def _read_if_there(path: pathlib.Path) -> Mapping[str, Any]:
    return json_text.read_object(path) if path.is_file() else {}


def _has_marks(texts: Iterable[str]) -> bool:
    marked = [f"{sentencepiece.SPACE}{letter}" for letter in vocabulary.STANDARD]
    return not set(marked).isdisjoint(texts)


def of_ids(path: pathlib.Path, ids: Mapping[str, int]) -> Pieces:
    """Pieces from a table of ids."""
    texts = [f"<row_{i}>" for i in range(1 + max(ids.values(), default=-1))]
    for text, i in ids.items():
        texts[i] = text
    return Pieces(path, tuple(texts), (True,) * len(texts), marked=False)


def _ids(path: pathlib.Path, content: Mapping[str, Any], key: str) -> dict[str, int]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} has no JSON object {key!r}.")
    return _checked(path, value)


def _checked(path: pathlib.Path, ids: Mapping[str, Any]) -> dict[str, int]:
    for text, number in ids.items():
        if type(number) is not int or not 0 <= number < 1 << 20:
            raise ValueError(
                f"{path}: {text!r} has the id {number!r}; ids are whole numbers from "
                "0. Is it the vocabulary of a tokenizer?"
            )
    return dict(ids)


def sentinel_texts(count: int) -> Sequence[str]:
    """T5's sentinels in order of their ids: <extra_id_0> is the last."""
    return [f"<extra_id_{k}>" for k in range(count - 1, -1, -1)]
