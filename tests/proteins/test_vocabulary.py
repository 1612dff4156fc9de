"""Ids are those of the released models, and every byte has one stated meaning."""

import json

import numpy as np
import pytest

from prottrans_jax.proteins import vocabulary

# Written out by hand from the released files: SentencePiece order, then vocab.txt.
PROT_T5 = dict(
    A=3, L=4, G=5, V=6, S=7, R=8, E=9, D=10, T=11, I=12, P=13, K=14, F=15, Q=16, N=17,
    Y=18, M=19, H=20, W=21, C=22, X=23,
)  # fmt: skip
PROT_BERT = dict(
    L=5, A=6, G=7, V=8, E=9, S=10, I=11, K=12, R=13, D=14, T=15, P=16, N=17, Q=18, F=19,
    Y=20, M=21, H=22, C=23, W=24, X=25,
)  # fmt: skip


@pytest.mark.parametrize(
    "vocab, golden, size",
    [(vocabulary.PROT_T5, PROT_T5, 128), (vocabulary.PROT_BERT, PROT_BERT, 30)],
    ids=["ProtT5", "ProtBert"],
)
def test_ids_are_those_of_the_released_model(vocab, golden, size):
    assert vocab.size == size
    for letter, i in golden.items():
        assert vocab.encode(letter).tolist() == [i]
        assert vocab.encode(letter.lower()).tolist() == [i]
        assert vocab.encode(letter.encode()).tolist() == [i]
    for letter in "UZOBJ":
        assert vocab.encode(letter).tolist() == [golden["X"]] == [vocab.x_id]
    assert vocab.residue_ids.tolist() == sorted(golden[a] for a in golden if a != "X")


def test_special_ids_of_prot_t5():
    v = vocabulary.PROT_T5
    assert (v.pad_id, v.eos_id, v.unk_id) == (0, 1, 2)
    assert (v.sentinel_id(0), v.sentinel_id(1), v.sentinel_id(99)) == (127, 126, 28)
    assert v.num_sentinels == 100
    assert v.mask_id is None and v.cls_id is None and v.sep_id is None
    with pytest.raises(ValueError, match="100 sentinels; there is no number 100"):
        v.sentinel_id(100)


def test_special_ids_of_prot_bert():
    v = vocabulary.PROT_BERT
    assert (v.pad_id, v.unk_id, v.cls_id, v.sep_id, v.mask_id) == (0, 1, 2, 3, 4)
    assert v.eos_id is None and v.num_sentinels == 0
    with pytest.raises(ValueError, match="0 sentinels"):
        v.sentinel_id(0)


def test_special_ids_of_the_other_families():
    # Constants of XLNet's script, data_utils.py, and defaults of ALBERT's.
    v = vocabulary.PROT_XLNET
    special = v.unk_id, v.eos_id, v.cls_id, v.sep_id, v.pad_id, v.mask_id
    assert special == (0, 2, 3, 4, 5, 6)
    # X is <unk> in ProtTrans' notebooks.
    assert v.x_id == 0 and v.encode("XU").tolist() == [0, 0]
    v = vocabulary.PROT_ALBERT
    assert (v.pad_id, v.unk_id, v.cls_id, v.sep_id, v.mask_id) == (0, 1, 2, 3, 4)
    # With these sizes, the released files have their numbers of bytes.
    assert vocabulary.PROT_XLNET.size == 37 and vocabulary.PROT_ALBERT.size == 34
    for v in (vocabulary.PROT_XLNET, vocabulary.PROT_ALBERT, vocabulary.PROT_TXL):
        assert v.decode(v.encode("MKTAYIW")) == "MKTAYIW"
        assert len(set(v.residue_ids)) == 20 and len(set(v.pieces)) == v.size


def test_prot_t5_pieces_equal_the_published_table(shared):
    path = shared / "data/interop/tokenizers/prot_t5/prot_t5_vocab_ids.json"
    table = json.loads(path.read_text())["vocab"]
    pieces = sorted(table, key=table.get)
    assert vocabulary.PROT_T5.pieces == tuple(p.removeprefix("▁") for p in pieces)


def test_prot_bert_pieces_equal_the_released_vocab_file(shared):
    path = shared / "data/interop/tokenizers/prot_bert_bfd/vocab.txt"
    assert vocabulary.PROT_BERT.pieces == tuple(path.read_text().split())


@pytest.mark.parametrize("vocab", [vocabulary.PROT_T5, vocabulary.PROT_BERT])
def test_bytes_that_are_not_letters_are_unknown(vocab):
    residue = set(b"ACDEFGHIKLMNPQRSTVWYXUZOBJacdefghiklmnpqrstvwyxuzobj")
    for byte in range(256):
        assert (vocab.byte_table[byte] == vocab.unk_id) == (byte not in residue)


@pytest.mark.parametrize("char", ["*", "-", ".", " ", "\0", "1", "é", "β"])
def test_encode_names_invalid_characters_and_their_position(char):
    with pytest.raises(ValueError, match=r"at position 3 \(0-based\)") as error:
        vocabulary.PROT_T5.encode("MKT" + char + "LL")
    assert repr(char) in str(error.value)


def test_decode_inverts_encode_and_leaves_out_padding():
    v = vocabulary.PROT_T5
    ids = np.concatenate([v.encode("MKTAYX"), [v.sentinel_id(0), v.eos_id, 0, 0]])
    assert v.decode(ids) == "MKTAYX<extra_id_0>"
    assert vocabulary.PROT_BERT.decode([2, 21, 12, 4, 3, 0]) == "MK[MASK]"


def test_tables_cannot_be_changed_by_accident():
    with pytest.raises(ValueError):
        vocabulary.PROT_T5.byte_table[65] = 0
