"""The pieces of a SentencePiece model, read by the `sentencepiece` library.

The library is a dependency of every installation: it has none itself, needs 2 MB, and
rejects damaged models. A parser of our own would have to follow its format.
"""

import pathlib
from typing import NamedTuple

SPACE = "\u2581"  # SentencePiece's mark for a space; pieces that begin a word have it.


class Model(NamedTuple):
    """The parts of a model that determine the ids of residues.

    Attributes:
      pieces: In the order of their ids.
      is_text: For each piece, whether it stands for text: neither unknown, control,
        unused nor a byte.
      add_space: Whether a space is put before a text.
    """

    pieces: tuple[str, ...]
    is_text: tuple[bool, ...]
    add_space: bool


def read(path: pathlib.Path) -> Model:
    """Reads a file such as `spiece.model`.

    Raises:
      ValueError: It is not a SentencePiece model, or truncated.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(path.read_bytes())
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not a SentencePiece model, or truncated ({error}). Is it the "
            "file itself, and not a Git LFS pointer?"
        ) from error
    ids = range(processor.get_piece_size())
    special = (
        processor.is_unknown,
        processor.is_control,
        processor.is_unused,
        processor.is_byte,
    )
    return Model(
        tuple(map(processor.id_to_piece, ids)),
        tuple(not any(is_kind(i) for is_kind in special) for i in ids),
        processor.normalize("A").startswith((SPACE, " ")),
    )
