"""Models with other ids than ours: their ids are used, or refused if unknown.

A model that gets another's ids gives wrong vectors, which nothing shows.
"""

import json

import jax
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax import cli
from prottrans_jax.checkpoints import opening
from prottrans_jax.encoders import exporting
from prottrans_jax.interop import checkpoint_ids, huggingface, vocabularies
from prottrans_jax.models import bert, t5
from prottrans_jax.proteins import vocabulary

LETTERS = "LAGVSERTIDPKQNFYMHWC"
# Vocabulary of a published antibody model: 25 ids, no X.
ANTIBODY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ARNDCQEGHILKMFPSTWYV"]


def write_bert(folder, num_rows=25):
    config = bert.BertConfig(
        vocab_size=num_rows,
        num_layers=1,
        num_heads=2,
        head_dim=3,
        d_model=6,
        d_ff=7,
        max_length=40,
    )
    params = jax.tree.map(np.asarray, bert.init_params(config, jax.random.key(1)))
    huggingface.write(folder, config, params)
    return folder


def write_t5(folder, num_rows=150, gated=False):
    config = t5.T5Config(
        vocab_size=num_rows,
        num_layers=1,
        num_decoder_layers=0,
        num_heads=2,
        head_dim=3,
        d_model=8,
        d_ff=7,
        mlp_activations=("gelu", "linear") if gated else ("relu",),
    )
    params = jax.tree.map(np.asarray, t5.init_params(config, jax.random.key(1)))
    huggingface.write(folder, config, params)
    return folder


def write_tokenizer_json(folder, pieces, **content):
    model = {"type": "Unigram", "vocab": [[piece, -1.0] for piece in pieces]}
    text = json.dumps({"model": model, "added_tokens": [], **content})
    (folder / "tokenizer.json").write_text(text)


def write_prostt5(folder):
    """Pieces of ProstT5: ProtT5's 128, then 3Di states and two to begin with."""
    pieces = {piece: i for i, piece in enumerate(vocabulary.PROT_T5.pieces)}
    pieces |= {x: 128 + i for i, x in enumerate("acdefghiklmnpqrstvwy")}
    pieces |= {"<fold2AA>": 148, "<AA2fold>": 149}
    write_t5(folder)
    (folder / "vocabulary.json").write_text(json.dumps({"pieces": pieces}))
    return pieces


@pytest.mark.parametrize("make", [write_bert, write_t5])
def test_without_a_vocabulary_file_residues_are_refused(tmp_path, make, capsys):
    folder = make(tmp_path / "model")
    encoder = prottrans_jax.load_encoder(folder, dtype="float32")
    for use in (encoder.embed, encoder.tokenize):
        with pytest.raises(ValueError, match="has no vocabulary file") as error:
            use(["MKT"])
    assert "config.json, model.safetensors" in str(error.value)
    source = tmp_path / "a.fasta"
    source.write_text(">A\nMKT\n")
    given = ["embed", "-i", str(source), "-o", str(tmp_path / "o.h5")]
    assert cli.main([*given, "-m", str(folder), "-q"]) == 2
    said = capsys.readouterr().err
    assert "--vocabulary FILE" in said and "Traceback" not in said
    assert not (tmp_path / "o.h5").exists()


def test_a_model_with_unknown_ids_takes_token_ids(tmp_path):
    encoder = prottrans_jax.load_encoder(write_bert(tmp_path / "m"), dtype="float32")
    tokens = np.array([[2, 24, 3]])
    assert encoder(tokens, tokens > 0).shape == (1, 3, 6)
    with pytest.raises(ValueError, match=r"tokens\[0, 1\] is 25; ids must be 0 to 24"):
        encoder(np.array([[2, 25, 3]]), tokens > 0)


def test_the_vocabulary_that_is_named_is_used(tmp_path):
    folder = write_bert(tmp_path / "model")
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(ANTIBODY) + "\n\n")
    with pytest.raises(ValueError, match=f"There is {file}"):
        prottrans_jax.load_encoder(folder).embed(["MKT"])
    encoder = prottrans_jax.load_encoder(folder, vocabulary=file)
    tokens, _ = encoder.tokenize(["ARVX"])
    assert tokens.tolist() == [[2, 5, 6, 24, 1, 3]]
    again = prottrans_jax.load_encoder(folder, vocabulary=tmp_path)
    assert again.fingerprint == encoder.fingerprint


def test_the_command_takes_the_vocabulary_too(tmp_path, capsys):
    folder = write_bert(tmp_path / "model")
    (tmp_path / "ids.txt").write_text("\n".join(ANTIBODY))
    source = tmp_path / "a.fasta"
    source.write_text(">A\nMKT\n")
    given = ["embed", "-i", str(source), "-m", str(folder), "-q"]
    given += ["-o", str(tmp_path / "o.npz"), "--vocabulary"]
    assert cli.main([*given, str(tmp_path / "ids.txt")]) == 0
    encoder = prottrans_jax.load_encoder(folder, vocabulary=tmp_path / "ids.txt")
    np.testing.assert_allclose(
        np.load(tmp_path / "o.npz")["A"], encoder.embed(["MKT"])[0], atol=2e-3
    )
    for wrong, message in (("no.txt", "no such vocabulary file"), ("prot_t5", "rows")):
        place = wrong if wrong == "prot_t5" else str(tmp_path / wrong)
        assert cli.main([*given, place]) == 2
        assert message in capsys.readouterr().err


def test_ids_beyond_the_table_are_named_by_letter(tmp_path):
    folder = write_bert(tmp_path / "model", num_rows=25)
    with pytest.raises(ValueError, match=r"30 ids.*25 rows"):
        prottrans_jax.load_encoder(folder, vocabulary="prot_bert")
    with pytest.raises(ValueError, match=r"beyond the 25 rows .*: X 25, U 25"):
        vocabularies.check_rows(vocabulary.PROT_BERT, (2, 3), 25, folder)


def test_t5_with_its_own_tokenizer_uses_the_ids_of_that_tokenizer(tmp_path):
    folder = write_t5(tmp_path / "m", num_rows=144, gated=True)
    pieces = ["<pad>", "</s>", "<unk>", *LETTERS, "X"]
    pieces += [f"<extra_id_{i}>" for i in range(115)]
    write_tokenizer_json(folder, pieces)
    encoder = prottrans_jax.load_encoder(folder)
    tokens, _ = encoder.tokenize(["LAGCXU"])
    assert tokens.tolist() == [[3, 4, 5, 22, 23, 23, 1]]


def test_a_tokenizer_that_adds_a_space_needs_marked_residues(tmp_path):
    folder = write_t5(tmp_path / "m", num_rows=144)
    space = {"type": "Metaspace", "prepend_scheme": "always"}
    write_tokenizer_json(
        folder, ["<pad>", "</s>", "<unk>", *LETTERS], pre_tokenizer=space
    )
    with pytest.raises(ValueError, match="begins with a space"):
        prottrans_jax.load_encoder(folder)


def test_a_prefix_goes_before_each_protein_and_gets_no_vector(tmp_path):
    write_prostt5(tmp_path / "m")
    plain = prottrans_jax.load_encoder(tmp_path / "m", dtype="float32")
    encoder = prottrans_jax.load_encoder(
        tmp_path / "m", dtype="float32", prefix="<AA2fold>"
    )
    tokens, mask = encoder.tokenize(["MKt"])
    ids = vocabulary.PROT_T5.encode("MKT").tolist()
    assert tokens.tolist() == [[149, *ids, 1]]
    (vectors,) = encoder.embed(["MKt"])
    hidden = np.asarray(encoder(tokens, mask))[0]
    np.testing.assert_allclose(vectors, hidden[1:4], atol=1e-5)
    assert not np.allclose(vectors, plain.embed(["MKT"])[0], atol=1e-3)


def test_after_fold2aa_letters_are_3di_states(tmp_path):
    pieces = write_prostt5(tmp_path / "m")
    encoder = prottrans_jax.load_encoder(tmp_path / "m", prefix="<fold2AA>")
    tokens, _ = encoder.tokenize(["dvP", "X"])
    assert tokens[0].tolist() == [148, pieces["d"], pieces["v"], pieces["p"], 1]
    assert tokens[1].tolist() == [148, pieces["<unk>"], 1, 0, 0]


def test_pieces_without_a_use_are_named_once(tmp_path, caplog):
    write_prostt5(tmp_path / "m")
    with caplog.at_level("WARNING", logger="absl"):
        prottrans_jax.load_encoder(tmp_path / "m")
    (said,) = [x.getMessage() for x in caplog.records if "not used" in x.getMessage()]
    assert "<fold2AA>, <AA2fold> and 20 lower-case letters" in said
    assert "--prefix '<fold2AA>'" in said


def test_an_unknown_prefix_is_refused_with_those_there_are(tmp_path):
    write_prostt5(tmp_path / "m")
    with pytest.raises(ValueError, match=r"not a piece of .*It has <fold2AA>, <AA2f"):
        prottrans_jax.load_encoder(tmp_path / "m", prefix="<AA2Fold>")
    (tmp_path / "m" / "vocabulary.json").unlink()
    write_t5(tmp_path / "plain", num_rows=128)
    with pytest.raises(ValueError, match="It has no such pieces"):
        prottrans_jax.load_encoder(tmp_path / "plain", prefix="<AA2fold>")


def test_vectors_with_another_prefix_are_another_run(tmp_path):
    write_prostt5(tmp_path / "m")
    source = tmp_path / "a.fasta"
    source.write_text(">A\nMKT\n")
    given = ["embed", "-i", str(source), "-o", str(tmp_path / "o.h5"), "-q"]
    given += ["-m", str(tmp_path / "m")]
    assert cli.main([*given, "--prefix", "<AA2fold>"]) == 0
    assert cli.main([*given, "--prefix", "<AA2fold>"]) == 0
    assert cli.main(given) == 2


def test_pieces_that_were_added_later_get_their_ids(tmp_path):
    folder = write_bert(tmp_path / "m", num_rows=30)
    (folder / "vocab.txt").write_text("\n".join([*ANTIBODY, "X"]))
    (folder / "added_tokens.json").write_text('{"[H]": 27}')
    names = {"cls_token": {"content": "[H]"}, "pad_token": "[PAD]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    found = huggingface.read(folder).vocabulary
    assert found.pieces[25:] == ("X", "<row_26>", "[H]")
    # The family's own name of a role goes first.
    assert found.cls == "[CLS]" and "[H]" in vocabularies.tags(found)


def test_special_pieces_of_other_names_are_taken_from_the_tokenizer(tmp_path):
    folder = write_bert(tmp_path / "m")
    names = {"[PAD]": "<pad>", "[CLS]": "<cls>", "[SEP]": "<sep>"}
    lines = [names.get(piece, piece) for piece in ANTIBODY]
    (folder / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"no piece for pad \(\[PAD\]\), cls"):
        huggingface.read(folder)
    tokens = {f"{x.strip('<>')}_token": x for x in names.values()}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    found = huggingface.read(folder).vocabulary
    assert (found.pad, found.cls, found.sep) == ("<pad>", "<cls>", "<sep>")


def test_special_pieces_are_read_from_tokenizer_json(tmp_path):
    folder = write_bert(tmp_path / "model", num_rows=26)
    special = ["<pad>", "<unknown>", "<start>", "<end>", "<mask>"]
    pieces = [*special, *LETTERS, "X"]
    content = {
        "model": {
            "type": "WordPiece",
            "unk_token": "<unknown>",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
        },
        "added_tokens": [
            {"id": i, "content": x, "special": True} for i, x in enumerate(special)
        ],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<start>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<end>", "type_id": 0}},
            ],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokens, _ = prottrans_jax.load_encoder(folder).tokenize(["LAX", "L"])
    assert tokens.tolist() == [[2, 5, 6, 25, 3], [2, 5, 3, 0, 0]]
    content["post_processor"] = {"cls": ["<end>", 3], "sep": ["<start>", 2]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokens, _ = prottrans_jax.load_encoder(folder).tokenize(["L"])
    assert tokens.tolist() == [[3, 5, 2]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [1, 2]}}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": ["<pad>"]}),
        ("tokenizer.json", {"model": {"vocab": {"A": 1}}, "post_processor": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": {"content": "A"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["A"]}),
    ],
)
def test_a_damaged_tokenizer_file_is_named(tmp_path, name, content):
    folder = write_bert(tmp_path / "model")
    if name != "tokenizer.json":
        (folder / "vocab.txt").write_text("\n".join(ANTIBODY))
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        prottrans_jax.load_encoder(folder)


def test_a_blank_line_of_vocab_txt_counts_as_an_id(tmp_path):
    folder = write_bert(tmp_path / "m", num_rows=30)
    (folder / "vocab.txt").write_text("\n".join([*ANTIBODY[:5], "", *ANTIBODY[5:]]))
    assert huggingface.read(folder).vocabulary.encode("A").tolist() == [6]


def test_released_models_need_no_vocabulary_file(tmp_path):
    folder = write_bert(tmp_path / "tiny", num_rows=30)
    assert huggingface.read(folder).unknown_ids
    config = json.loads((folder / "config.json").read_text())
    config["_name_or_path"] = "Rostlab/prot_bert_bfd"
    (folder / "config.json").write_text(json.dumps(config))
    assert not huggingface.read(folder).unknown_ids
    cached = tmp_path / "models--Rostlab--prot_bert" / "snapshots" / "c0ffee"
    assert not huggingface.read(write_bert(cached, num_rows=30)).unknown_ids
    found = huggingface.read(write_bert(tmp_path / "other", num_rows=25))
    sizes = dict(num_layers=30, num_heads=16, d_model=1024, d_ff=4096, vocab_size=30)

    class Released:
        config = bert.BertConfig(head_dim=64, max_length=40000, **sizes)
        family, attributes, source = found.family, {}, tmp_path

    assert checkpoint_ids.assumed(Released) is Released


def test_a_t5_with_prott5s_rows_gets_its_ids_with_a_warning(tmp_path, caplog):
    write_t5(tmp_path / "m", num_rows=128)
    with caplog.at_level("WARNING", logger="absl"):
        encoder = prottrans_jax.load_encoder(tmp_path / "m")
    assert encoder.vocabulary is vocabulary.PROT_T5
    assert "128 rows are assumed to be ProtT5's ids" in caplog.text


def test_unknown_ids_are_never_written_as_known(tmp_path):
    folder = write_bert(tmp_path / "m")
    with pytest.raises(ValueError, match="has no vocabulary file"):
        exporting.export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
)
def test_an_adapter_beside_a_base_model_is_refused(tmp_path, name):
    folder = write_t5(tmp_path / "m", num_rows=128)
    (folder / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match="merge_and_unload") as error:
        opening.read(folder)
    assert name in str(error.value)
    (folder / "config.json").unlink()
    if name == "adapter_config.json":
        with pytest.raises(ValueError, match="merge_and_unload"):
            opening.read(folder)
