"""`proteins.vocabulary` as SeqIO vocabularies, by a look-up table of bytes."""

from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.proteins import vocabulary


class ByteTableVocabulary(seqio.Vocabulary):
    """A `vocabulary.Vocabulary` for SeqIO.

    One gather turns bytes into ids. The treatment of lower case, rare letters and other
    characters is that of `proteins.vocabulary`.
    """

    def __init__(self, table: vocabulary.Vocabulary):
        # Sentinels are SeqIO's extra ids: decode() shows them as unknown.
        super().__init__(extra_ids=table.num_sentinels)
        self.table = table

    @property
    def eos_id(self) -> int | None:
        """Id of </s>; None where the family has none."""
        return self.table.eos_id

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self.table.pad_id

    @property
    def unk_id(self) -> int:
        """Id of characters that are not residues."""
        return self.table.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.table.size - self.table.num_sentinels

    def _encode(self, s: str) -> Sequence[int]:
        data = s.encode("latin-1", errors="replace")
        return self.table.byte_table[np.frombuffer(data, np.uint8)].tolist()

    def _decode(self, ids: Iterable[int]) -> str:
        return self.table.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        table = tf.constant(self.table.byte_table.astype(np.int32))
        return tf.gather(table, tf.cast(tf.io.decode_raw(s, tf.uint8), tf.int32))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        hidden = {self.table.pad, self.table.eos, self.table.cls, self.table.sep}
        pieces = tf.constant(["" if p in hidden else p for p in self.table.pieces])
        return tf.strings.reduce_join(tf.gather(pieces, ids), axis=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteTableVocabulary) and self.table == other.table

    def __hash__(self) -> int:
        return hash(self.table)

    def __str__(self) -> str:
        return f"ByteTableVocabulary({self.table.name}, size={self.table.size})"


def prot_t5() -> ByteTableVocabulary:
    """The vocabulary of ProtT5; for the models of other libraries' gin files."""
    return ByteTableVocabulary(vocabulary.PROT_T5)
