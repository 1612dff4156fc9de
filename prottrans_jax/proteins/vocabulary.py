"""Vocabularies of all model families, and the meaning of each byte of a sequence:

  ======================  ==========================================================
  A C D E F ... W Y       itself: the 20 standard amino acids
  X                       X, "some amino acid"
  U Z O B J               X. The models were trained with U, Z, O, B replaced by X
                          (Elnaggar et al. 2021, section 2.2); J (Leu or Ile) is as
                          ambiguous as B and Z and no vocabulary has a piece for it.
  lower case              as its upper case (soft-masked or a3m insertions: residues)
  white space             ignored: `clean` removes it.
  ``-`` ``.``             alignment gaps: no residues. `clean` removes and counts
                          them; `Vocabulary.encode` refuses them.
  ``*``                   a stop. `clean` removes it at the end of a sequence;
                          elsewhere it is refused.
  anything else           unknown
  ======================  ==========================================================

Prepared records hold letters (`CANONICAL` maps a byte to the stored letter), so that
one data set serves all families; ids are looked up when rows are made.
"""

import dataclasses
import functools
from typing import NamedTuple

import jaxtyping
import numpy as np

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
# Letters of residues without an id that the models were trained with.
READ_AS_X = "UZOBJ"
LETTERS = STANDARD + "X" + READ_AS_X
# A sequence of only these letters carries no information.
X_LETTERS = ("X" + READ_AS_X).encode()
GAPS = b"-."
STOP = b"*"
WHITE_SPACE = b" \t\n\r\v\f"
_UPPER = bytes(range(256)).upper()


def _canonical_letters() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for letter in LETTERS:
        table[ord(letter)] = table[ord(letter.lower())] = ord(letter)
    table.flags.writeable = False
    return table


# [256] uint8: byte -> stored upper-case letter; 0 if it is not a residue.
CANONICAL = _canonical_letters()


class Cleaned(NamedTuple):
    """Residues of a sequence, and numbers of the characters that `clean` removed."""

    residues: bytes
    num_gaps: int
    num_stops: int


def clean(text: bytes) -> Cleaned:
    """Normalises a sequence from FASTA or Python to its residues.

    Removes white space, gaps and the stops at the end; lower case becomes upper case.
    Characters that are not residues stay, for the caller to refuse. All letters are
    residues, so `residues.isalpha()` is False if there are others.
    """
    joined = text.translate(_UPPER, WHITE_SPACE)
    without_gaps = joined.translate(None, GAPS)
    residues = without_gaps.rstrip(STOP)
    num_gaps = len(joined) - len(without_gaps)
    return Cleaned(residues, num_gaps, len(without_gaps) - len(residues))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Pieces of a released model in the order of their ids.

    Attributes:
      name: used in error messages.
      pieces: piece of every id. Letters are residues, all others are special.
      pad, eos, unk, mask, cls, sep: the special pieces by role; None if the family has
        no such piece.
      sentinel: pattern of the k-th sentinel, e.g. ``<extra_id_{}>``.
      x: the piece for X.
      lower: whether residues are the lower-case pieces (3Di states of ProstT5).
    """

    name: str
    pieces: tuple[str, ...]
    pad: str
    unk: str
    eos: str | None = None
    mask: str | None = None
    cls: str | None = None
    sep: str | None = None
    sentinel: str | None = None
    x: str = "X"
    lower: bool = False

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def _optional(self, piece: str | None) -> int | None:
        return None if piece is None else self._ids[piece]

    def _residue_id(self, letter: str) -> int:
        return self._ids[letter.lower() if self.lower else letter]

    @property
    def size(self) -> int:
        """Number of ids, and of rows of the embedding table."""
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        """Id of padding: 0 in every family but XLNet."""
        return self._ids[self.pad]

    @property
    def unk_id(self) -> int:
        """Id of characters that are not residues."""
        return self._ids[self.unk]

    @property
    def eos_id(self) -> int | None:
        """Id that ends a sequence (T5), else None."""
        return self._optional(self.eos)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask piece (BERT), else None."""
        return self._optional(self.mask)

    @property
    def cls_id(self) -> int | None:
        """Id of the piece before a sequence (BERT), else None."""
        return self._optional(self.cls)

    @property
    def sep_id(self) -> int | None:
        """Id of the piece after a sequence (BERT), else None."""
        return self._optional(self.sep)

    @property
    def x_id(self) -> int:
        """Id of X, also used for U Z O B J."""
        return self._ids[self.x]

    @functools.cached_property
    def residue_ids(self) -> jaxtyping.Int32[np.ndarray, "20"]:
        """Ids of the 20 standard amino acids, in the order of their ids."""
        ids = np.array(sorted(self._residue_id(a) for a in STANDARD), np.int32)
        ids.flags.writeable = False
        return ids

    @functools.cached_property
    def num_sentinels(self) -> int:
        """Number of sentinels: 100 in T5, else 0."""
        if self.sentinel is None:
            return 0
        head, tail = self.sentinel.split("{}")
        return sum(p.startswith(head) and p.endswith(tail) for p in self.pieces)

    def sentinel_id(self, k: int) -> int:
        """Id of the k-th sentinel, k counted from 0.

        Raises:
          ValueError: the vocabulary has no sentinels, or not so many.
        """
        if self.sentinel is None or not 0 <= k < self.num_sentinels:
            raise ValueError(
                f"{self.name} has {self.num_sentinels} sentinels; there is no number "
                f"{k}."
            )
        return self._ids[self.sentinel.format(k)]

    @functools.cached_property
    def byte_table(self) -> jaxtyping.UInt8[np.ndarray, "256"]:
        """Byte -> id; see the table at the head of this file."""
        table = np.full(256, self.unk_id, np.uint8)
        for byte, letter in enumerate(CANONICAL):
            if letter:
                is_standard = chr(letter) in STANDARD
                table[byte] = (
                    self._residue_id(chr(letter)) if is_standard else self.x_id
                )
        table.flags.writeable = False
        return table

    def reads_as_x(self, letter: str) -> bool:
        """Whether a letter of a residue has no id of its own."""
        return self.byte_table[ord(letter)] in (self.x_id, self.unk_id)

    def encode(self, sequence: str | bytes) -> jaxtyping.Int32[np.ndarray, " length"]:
        """Ids of the residues of `sequence`, one per letter, without special pieces.

        Raises:
          ValueError: a character is not a residue; names it and its position.
            (`byte_table` gives `unk_id` instead.)
        """
        if isinstance(sequence, str):
            # One byte per character, so that positions in errors are right.
            data = sequence.encode("latin-1", errors="replace")
        else:
            data = bytes(sequence)
        letters = np.frombuffer(data, np.uint8)
        unknown = np.flatnonzero(CANONICAL[letters] == 0)
        if unknown.size:
            at = int(unknown[0])
            raise ValueError(
                f"{sequence[at : at + 1]!r} at position {at} (0-based) of a sequence "
                f"of {len(data)} is not a residue; {unknown.size} such characters. "
                f"Allowed: {LETTERS} in either case; `clean` removes gaps and a final "
                "'*'."
            )
        return self.byte_table[letters].astype(np.int32)

    def decode(self, ids: np.typing.ArrayLike) -> str:
        """Letters of `ids`; drops pad, eos, cls and sep, shows masks as their piece."""
        hidden = {self.pad, self.eos, self.cls, self.sep}
        pieces = (self.pieces[i] for i in np.asarray(ids).reshape(-1))
        return "".join(p for p in pieces if p not in hidden)


# 128 ids: the 28 pieces of the released SentencePiece model (24 B, 25 O, 26 U, 27 Z
# were never trained: those letters reach the model as X), then T5's sentinels, last one
# first.
PROT_T5 = Vocabulary(
    name="ProtT5",
    pieces=(
        *("<pad>", "</s>", "<unk>"),
        *"ALGVSREDTIPKFQNYMHWCXBOUZ",
        *(f"<extra_id_{k}>" for k in range(99, -1, -1)),
    ),
    pad="<pad>",
    eos="</s>",
    unk="<unk>",
    sentinel="<extra_id_{}>",
)

# 30 ids: vocab.txt of ProtBert, ProtBert-BFD and ProtElectra.
PROT_BERT = Vocabulary(
    name="ProtBert",
    pieces=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"),
    pad="[PAD]",
    unk="[UNK]",
    mask="[MASK]",
    cls="[CLS]",
    sep="[SEP]",
)

# The ids of ProtAlbert, ProtXLNet and ProtTXL are in SentencePiece and vocabulary files
# that were not available. The known facts are stated below; the rest is our choice.
# Rostlab's checkpoints need their own file, which `interop.vocabularies` reads.
_BY_FREQUENCY = "LAGVESIKRDTPNQFYMHCW"  # in UniRef100: the order of ProtBert's ids
# Characters that are pieces of their own in the scripts of ALBERT and XLNet.
_PUNCTUATION = ("(", ")", '"', "-", ".", "–", "£", "€")  # noqa: RUF001

# 34 ids, derived from the size of ProtAlbert's released file. They match the special
# pieces of ALBERT's script (its options of spm_train, in their order), the 20 amino
# acids and X. The order of the residues is our choice.
PROT_ALBERT = Vocabulary(
    name="ProtAlbert",
    pieces=(
        *("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *_PUNCTUATION),
        *(_BY_FREQUENCY + "X"),
    ),
    pad="<pad>",
    unk="<unk>",
    mask="[MASK]",
    cls="[CLS]",
    sep="[SEP]",
)

# 37 ids, derived from the size of ProtXLNet's released file. They match the special
# pieces of XLNet's script (ids 0 to 8 are constants there) and the 20 amino acids; X is
# `<unk>`, 0, as in ProtTrans' notebooks. The order of the rest is our choice.
PROT_XLNET = Vocabulary(
    name="ProtXLNet",
    pieces=(
        *("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>"),
        *("<eop>", ".", "(", ")", '"', "-", "–", "£", "€"),  # noqa: RUF001
        *_BY_FREQUENCY,
    ),
    pad="<pad>",
    unk="<unk>",
    mask="<mask>",
    cls="<cls>",
    sep="<sep>",
    eos="</s>",
    x="<unk>",
)

# 24 ids, all our choice, as nothing is published. `<eos>` ends a line, so a protein, in
# Transformer-XL's data; here it also begins one.
PROT_TXL = Vocabulary(
    name="ProtTXL",
    pieces=("<pad>", "<eos>", "<unk>", *(_BY_FREQUENCY + "X")),
    pad="<pad>",
    eos="<eos>",
    unk="<unk>",
)
