"""Ids of a folder's own vocabulary. Oracle: sentencepiece, and transformers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.checkpoints import opening
from prottrans_jax.interop import families, huggingface, sentencepiece, vocabularies
from prottrans_jax.models import albert, bert, electra, xlnet
from prottrans_jax.proteins import vocabulary

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
# Options of spm_train in the scripts of ALBERT and XLNet.
PUNCTUATION = ["(", ")", '"', "-", ".", "\u2013", "\u00a3", "\u20ac"]
OPTIONS = {
    "albert": dict(
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        user_defined_symbols=PUNCTUATION,
    ),
    "xlnet": dict(
        unk_id=0, bos_id=1, eos_id=2, pad_id=5,
        control_symbols=["<cls>", "<sep>", "<mask>", "<eod>"],
        user_defined_symbols=["<eop>", *PUNCTUATION],
    ),
}  # fmt: skip
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYXXUBZO", "W"]


def train(folder, family, letters=LETTERS, num_pieces=66, **options):
    """A SentencePiece model of random proteins, a space between residues."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    rng = np.random.default_rng(5)
    lines = [" ".join(rng.choice(list(letters), 60)) for _ in range(300)]
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("\n".join(lines))
    trainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=num_pieces,
        hard_vocab_limit=False,
        minloglevel=2,
        **(OPTIONS[family] | options),
    )
    (folder / "text").unlink()
    return folder / "spiece.model"


def write_model(path, pieces, *, add_space=True, kinds=()):
    """A model made piece by piece."""
    protocol = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = protocol.ModelProto()
    kinds = {"<unk>": "UNKNOWN", "[UNK]": "UNKNOWN", **dict(kinds)}
    for text in pieces:
        kind = protocol.ModelProto.SentencePiece.Type.Value(kinds.get(text, "NORMAL"))
        model.pieces.add(piece=text, score=-1.5, type=kind)
    model.normalizer_spec.add_dummy_prefix = add_space
    model.trainer_spec.unk_id = 1
    path.write_bytes(model.SerializeToString())


ALBERT = albert.AlbertConfig(
    vocab_size=66,
    num_layers=2,
    num_heads=3,
    head_dim=4,
    d_model=12,
    d_ff=14,
    d_embed=5,
    max_length=40,
)
BERT = bert.BertConfig(
    vocab_size=31,
    num_layers=1,
    num_heads=3,
    head_dim=4,
    d_model=12,
    d_ff=14,
    max_length=40,
)
ELECTRA = electra.ElectraEncoderConfig(
    vocab_size=66,
    num_layers=1,
    num_heads=3,
    head_dim=4,
    d_model=12,
    d_ff=14,
    d_embed=5,
    max_length=40,
    lm_head=True,
)
XLNET = xlnet.XLNetConfig(
    vocab_size=66, num_layers=2, num_heads=3, head_dim=4, d_model=12, d_ff=14
)


def random_params(config, seed=3):
    """Like the model's, but no two numbers alike."""
    module = families.family_of_config(config).module
    shapes = jax.eval_shape(lambda: module.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.3, shapes
    )


def write_folder(folder, config):
    huggingface.write(folder, config, random_params(config))


def spaced(sequence, rare):
    """As ProtTrans' notebooks write a protein for these tokenizers."""
    return " ".join(rare if x in "UZOBX" else x for x in sequence)


def test_pieces_are_those_that_sentencepiece_reads(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    path = train(tmp_path, "xlnet")
    oracle = spm.SentencePieceProcessor(model_file=str(path))
    found = sentencepiece.read(path)
    assert found.add_space
    assert list(found.pieces) == [
        oracle.id_to_piece(i) for i in range(oracle.get_piece_size())
    ]
    for i, is_text in enumerate(found.is_text):
        assert is_text != (oracle.is_control(i) or oracle.is_unknown(i))


@pytest.mark.parametrize("family", ["albert", "xlnet"])
@pytest.mark.parametrize("saved", ["spiece.model", "tokenizer.json"])
def test_ids_of_proteins_are_those_of_their_tokenizer(tmp_path, family, saved):
    transformers = pytest.importorskip("transformers")
    config = {"albert": ALBERT, "xlnet": XLNET}[family]
    write_folder(tmp_path, config)
    train(tmp_path, family)
    name, options = {
        "albert": ("AlbertTokenizer", {"do_lower_case": False}),
        "xlnet": ("XLNetTokenizer", {}),
    }[family]
    theirs = getattr(transformers, name).from_pretrained(tmp_path, **options)
    if saved == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "spiece.model").unlink()
    encoder = prottrans_jax.load_encoder(tmp_path)
    tokens, mask = encoder.tokenize(SEQUENCES)
    for row, sequence in enumerate(SEQUENCES):
        expected = theirs(spaced(sequence, "X"))["input_ids"]
        assert tokens[row][mask[row]].tolist() == expected
    assert encoder.vocabulary.pad_id == theirs.pad_token_id
    assert encoder.vocabulary.mask_id == theirs.mask_token_id
    assert set(tokens[~mask]) == {theirs.pad_token_id}
    assert encoder.vocabulary.decode(tokens[0]) == SEQUENCES[0]


def test_released_xlnet_has_no_word_x_so_x_is_unknown(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    pieces = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "X"]
    pieces += [f"\u2581{x}" for x in "WYVTSRQPNMLKIHGFEDCA"]
    write_folder(tmp_path, XLNET)
    kinds = dict.fromkeys(pieces[1:7], "CONTROL")
    write_model(tmp_path / "spiece.model", pieces, kinds=kinds)
    oracle = spm.SentencePieceProcessor()
    oracle.load(str(tmp_path / "spiece.model"))
    encoder = prottrans_jax.load_encoder(tmp_path)
    tokens, _ = encoder.tokenize(["AXWU"])
    ids = [oracle.piece_to_id(p) for p in ("\u2581A", "<unk>", "\u2581W", "<unk>")]
    assert tokens[0].tolist() == [*ids, 4, 3]


def test_without_a_piece_x_is_unknown_and_said_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        vocabularies.logging, "warning", lambda text, *args: said.append(text % args)
    )
    train(tmp_path, "albert", letters=vocabulary.STANDARD)
    found = vocabularies.read(tmp_path, vocabulary.PROT_ALBERT, 66)
    assert found.encode("XU").tolist() == [found.unk_id] * 2 == [1, 1]
    assert (
        len(said) == 1
        and "no piece for X: X, U, Z, O, B, J are read as <unk>" in (said[0])
    )


def test_vocab_txt_of_another_order_is_followed(tmp_path):
    transformers = pytest.importorskip("transformers")
    order = [
        "[PAD]",
        "[UNK]",
        "[MASK]",
        *"WYVTSXRQPNMLK",
        "[SEP]",
        *"IHGFEDCA",
        "[CLS]",
    ]
    write_folder(tmp_path, BERT)
    (tmp_path / "vocab.txt").write_text("\n".join(order))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    encoder = prottrans_jax.load_encoder(tmp_path)
    tokens, mask = encoder.tokenize(SEQUENCES)
    for row, sequence in enumerate(SEQUENCES):
        expected = theirs(spaced(sequence, "X"))["input_ids"]
        assert tokens[row][mask[row]].tolist() == expected


def test_the_released_vocab_txt_is_the_familys(shared):
    folder = shared / "data/interop/tokenizers/prot_bert_bfd"
    found = vocabularies.read(folder, vocabulary.PROT_BERT, 30)
    assert found is vocabulary.PROT_BERT


def test_t5_of_another_order_of_ids_is_read_with_its_own(shared, tmp_path):
    pytest.importorskip("sentencepiece")
    source = shared / "data/interop/hf_tiny/prot_t5"
    assert huggingface.read(source).vocabulary is vocabulary.PROT_T5
    folder = tmp_path / "t5"
    shutil.copytree(source, folder)
    pieces = list(sentencepiece.read(source / "spiece.model").pieces)
    pieces[3], pieces[4] = pieces[4], pieces[3]
    write_model(folder / "spiece.model", pieces)
    found = huggingface.read(folder).vocabulary
    assert found.encode("ALG").tolist() == [4, 3, 5]
    assert found.sentinel_id(0) == vocabulary.PROT_T5.sentinel_id(0)


def special(family):
    return [p for p in family.pieces if len(p) > 1]


@pytest.mark.parametrize(
    ("pieces", "options", "message"),
    [
        ([*"ACDEFGHIKLMNPQRSTVY"], {}, "no piece for the residues W"),
        (["\u2581A", *"CDEFGHIKLMNPQRSTVWY"], {}, "no piece for the residues C, D"),
        ([*vocabulary.STANDARD.lower()], {}, "upper case"),
        ([*(f"\u2581{x}" for x in vocabulary.STANDARD), "\u2581MK", "AA"], {},
         "has 2 pieces of several residues, such as '\u2581MK'"),
        ([*vocabulary.STANDARD], {}, "every text begins with a space"),
        ([*(f"\u2581{x}" for x in vocabulary.STANDARD)],
         {"kinds": {"\u2581W": "UNUSED"}}, "the residues W"),
        ([*(f"\u2581{x}" for x in vocabulary.STANDARD), *map(str, range(300))], {},
         "66 rows: it belongs to another model.* --vocabulary FILE"),
    ],
)  # fmt: skip
def test_a_model_without_residue_tokens_is_refused(tmp_path, pieces, options, message):
    write_model(
        tmp_path / "spiece.model", special(vocabulary.PROT_ALBERT) + pieces, **options
    )
    with pytest.raises(ValueError, match=message) as error:
        vocabularies.read(tmp_path, vocabulary.PROT_ALBERT, 66)
    assert str(tmp_path / "spiece.model") in str(error.value)


def test_pieces_without_a_mark_are_read_where_no_space_is_added(tmp_path):
    pieces = [*special(vocabulary.PROT_ALBERT), *reversed(LETTERS)]
    write_model(tmp_path / "spiece.model", pieces, add_space=False)
    found = vocabularies.read(tmp_path, vocabulary.PROT_ALBERT, 66)
    assert found.encode("XY").tolist() == [pieces.index("X"), pieces.index("Y")]


def test_a_special_piece_that_is_missing_is_named(tmp_path):
    pieces = special(vocabulary.PROT_ALBERT)
    pieces.remove("[SEP]")
    pieces += [f"\u2581{x}" for x in LETTERS]
    write_model(tmp_path / "spiece.model", pieces)
    with pytest.raises(ValueError, match=r"no piece for sep \(\[SEP\]\)"):
        vocabularies.read(tmp_path, vocabulary.PROT_ALBERT, 66)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_model_is_named(tmp_path, damage):
    path = tmp_path / "spiece.model"
    write_model(path, special(vocabulary.PROT_ALBERT) + list(LETTERS))
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-5], "text": b"version https://x\n", "empty": b""}[damage]
    )
    with pytest.raises(ValueError, match=r"spiece\.model is (not a|a) SentencePiece"):
        vocabularies.read(tmp_path, vocabulary.PROT_ALBERT, 66)


@pytest.mark.parametrize(
    "config", [ALBERT, ELECTRA, XLNET], ids=lambda c: type(c).__name__
)
def test_other_ids_after_renumbering_give_the_same_output(tmp_path, config):
    """A run of ours starts from such a checkpoint: same protein, same vectors."""
    family = families.family_of_config(config)
    train(tmp_path, "xlnet" if config is XLNET else "albert")
    if config is ELECTRA:
        texts = sentencepiece.read(tmp_path / "spiece.model").pieces
        names = {"<pad>": "[PAD]", "<unk>": "[UNK]"}
        lines = [names.get(x, x.removeprefix("\u2581") + "." * (x in LETTERS))
                 for x in texts]  # fmt: skip
        (tmp_path / "vocab.txt").write_text("\n".join(lines))
        (tmp_path / "spiece.model").unlink()
    write_folder(tmp_path, config)
    found = huggingface.read(tmp_path)
    theirs, ours = found.vocabulary, family.vocabulary
    assert theirs is not ours
    module = opening.model_of(found)
    sequence = "MKTAYIAKQRXACDEFGHLNPSVW"

    def logits(params, vocab, around):
        before, after = around
        tokens = jnp.array([[*before, *vocab.encode(sequence), *after]])
        out = module.apply({"params": params}, tokens, deterministic=True)
        values = out.values if config is XLNET else out.logits
        return np.asarray(values)[0][:, [*vocab.encode(vocabulary.STANDARD)]]

    expected = logits(found.params, theirs, (found.prefix_ids, found.suffix_ids))
    moved = vocabularies.renumber(found.params, theirs, ours)
    # The file's ids matter: with our own, the same weights give something else.
    around = family.prefix_ids, family.suffix_ids
    assert not np.allclose(logits(found.params, ours, around), expected, atol=1e-2)
    got = logits(moved, ours, around)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_a_run_starts_from_another_order_of_ids(tmp_path):
    write_folder(tmp_path / "theirs", ALBERT)
    train(tmp_path / "theirs", "albert")
    found = huggingface.read(tmp_path / "theirs")
    expected = vocabularies.renumber(
        found.params, found.vocabulary, vocabulary.PROT_ALBERT
    )["embeddings"]["token"]["embedding"]
    theirs = found.params["embeddings"]["token"]["embedding"]
    for letter in LETTERS:
        np.testing.assert_array_equal(
            expected[vocabulary.PROT_ALBERT.encode(letter)],
            theirs[found.vocabulary.encode(letter)],
        )
    shapes = jax.eval_shape(lambda: albert.init_params(ALBERT, jax.random.key(0)))
    started = opening.load_params(f"hf:{tmp_path / 'theirs'}", shapes, ALBERT)
    np.testing.assert_array_equal(started["embeddings"]["token"]["embedding"], expected)
    opening.save(tmp_path / "run", opening.read(tmp_path / "theirs", scan_layers=True))
    run = opening.read(tmp_path / "run")
    np.testing.assert_array_equal(
        run.params["embeddings"]["token"]["embedding"], expected
    )
    assert run.vocabulary is vocabulary.PROT_ALBERT


def test_too_few_rows_for_our_ids_are_named(tmp_path):
    with pytest.raises(ValueError, match="has 30 rows, ProtXLNet has 37 ids"):
        vocabularies.renumber(
            {"token_embedder": {"embedding": np.zeros((30, 2))}},
            vocabulary.PROT_TXL,
            vocabulary.PROT_XLNET,
        )


def test_own_vocabulary_json_is_read_back(tmp_path):
    train(tmp_path, "xlnet")
    found = vocabularies.read(tmp_path, vocabulary.PROT_XLNET, 66)
    (tmp_path / "spiece.model").unlink()
    vocabularies.write(tmp_path, found, (1,), (2, 3))
    again = vocabularies.read(tmp_path, vocabulary.PROT_XLNET, 66)
    assert again.pieces == found.pieces
    np.testing.assert_array_equal(again.byte_table, found.byte_table)
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    assert content["before_residues"] == [1] and content["after_residues"] == [2, 3]


def test_vectors_made_with_other_ids_are_not_taken_for_the_same(tmp_path):
    write_folder(tmp_path, ALBERT)
    without = prottrans_jax.load_encoder(tmp_path)
    train(tmp_path, "albert")
    with_file = prottrans_jax.load_encoder(tmp_path)
    assert with_file.fingerprint != without.fingerprint
