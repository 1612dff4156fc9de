"""`prottrans score`: files, counts, exit statuses."""

import csv
import json

import h5py
import numpy as np
import pytest
from scipy import stats

from cases import score_cases
from prottrans_jax import cli
from prottrans_jax.scoring import scorers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny ProtBert; the command loads it by its path."""
    return score_cases.write_model(tmp_path_factory.mktemp("command") / "m", "bert")


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs the command in a folder of its own; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fasta").write_text(">one text\nPRTE\n>sp|P2|two\nMKXWC\n")

    def call(*arguments, source="x.fasta"):
        return cli.main(["score", "-i", source, "-m", str(folder), *arguments])

    return call


def _rows(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_pseudo_perplexities_are_in_the_order_of_the_fasta(run, model, capsys):
    assert run("-o", "out.csv") == 0
    rows = _rows("out.csv")
    expected = scorers.Scorer(model("bert")).pseudo_perplexity(["PRTE", "MKXWC"])
    assert [x["id"] for x in rows] == ["one", "sp|P2|two"]
    assert [(x["length"], x["scored"]) for x in rows] == [("4", "4"), ("5", "4")]
    values = [float(x["perplexity"]) for x in rows]
    np.testing.assert_allclose(values, [x.perplexity for x in expected], rtol=1e-5)
    assert "2 proteins, 9 residues scored" in capsys.readouterr().err


def test_the_one_pass_estimate_is_named_in_the_file(run):
    assert run("-o", "out.jsonl", "--one-pass") == 0
    with open("out.jsonl") as file:
        rows = [json.loads(line) for line in file]
    assert {x["likelihood"] for x in rows} == {"masked, one pass"}


def test_logits_have_a_column_for_each_piece(run, model):
    assert run("-o", "out.h5", "--logits") == 0
    expected = scorers.Scorer(model("bert")).logits(["MKXWC"])[0]
    with h5py.File("out.h5") as file:
        pieces = file.attrs["columns"].split()
        assert pieces[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "L"]
        np.testing.assert_allclose(file["P2"][()], expected, atol=1e-5)


def test_variants_keep_their_columns_and_are_correlated(run, tmp_path, model, capsys):
    (tmp_path / "one.csv").write_text(
        "mutant,mutated_sequence,DMS_score,note\n"
        'P1A,ARTE,0.5,"a, b"\nR2C:T3A,PCAE,,\nE4D,PRTD,-1.5,x\nP1W,WRTE,0.1,y\n'
    )
    assert run("-o", "out.csv", "--variants", "one.csv") == 0
    rows = _rows("out.csv")
    scores = [float(x["score"]) for x in rows]
    expected = scorers.Scorer(model("bert")).variants(
        "PRTE", ["P1A", "R2C:T3A", "E4D", "P1W"]
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert list(rows[0]) == [
        *("mutant", "mutated_sequence", "DMS_score", "note", "score")
    ]
    assert rows[0]["note"] == "a, b"
    correlation = stats.spearmanr(expected[[0, 2, 3]], [0.5, -1.5, 0.1]).statistic
    said = capsys.readouterr().out
    assert said == f"one: Spearman {correlation:.4f} over 3 of 4 variants\n"


def test_all_substitutions_are_rows_of_proteingym_or_a_matrix(run, model):
    matrix = scorers.Scorer(model("bert")).substitutions("MKXWC")
    assert run("-o", "out.csv", "--all-substitutions") == 0
    rows = _rows("out.csv")
    assert len(rows) == (4 + 4) * 19  # X has none.
    (row,) = [x for x in rows if x["mutant"] == "W4D"]
    assert row["mutated_sequence"] == "MKXDC"
    assert float(row["score"]) == pytest.approx(matrix[3, 2], abs=1e-5)
    assert run("-o", "out.tsv", "--all-substitutions", "--matrix") == 0
    row = _rows("out.tsv", "\t")[4 + 3]
    assert (row["position"], row["wild_type"], row["W"]) == ("4", "W", "0.0")
    assert run("-o", "out.npz", "--all-substitutions") == 0
    with np.load("out.npz") as file:
        np.testing.assert_allclose(file["P2"], matrix, atol=1e-5)


def test_infill_lists_the_best_residues(run, tmp_path):
    (tmp_path / "gaps.fasta").write_text(">a\nM?TXY\n>b_\nPRTE\n")
    assert run("-o", "out.csv", "--infill", "--top", "2", source="gaps.fasta") == 0
    rows = _rows("out.csv")
    assert [(x["id"], x["position"], x["rank"]) for x in rows] == [
        *(("a", "2", "1"), ("a", "2", "2"), ("a", "4", "1"), ("a", "4", "2"))
    ]
    assert 1 > float(rows[0]["probability"]) >= float(rows[1]["probability"]) > 0


def test_records_that_are_left_out_are_named(run, tmp_path, capsys):
    (tmp_path / "y.fasta").write_text(f">good\nPRTE\n>bad\nM1K\n>long\n{'P' * 39}\n")
    options = ("--on-bad", "skip", "--long", "skip", "--one-pass")
    assert run("-o", "out.csv", *options, source="y.fasta") == 3
    said = capsys.readouterr().err
    assert "(bad)" in said and "the model has positions for (long)" in said
    assert len(_rows("out.csv")) == 1
    assert (tmp_path / "out.csv.skipped.tsv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "table", "words"),
    [
        (["-o", "out.h5"], "", "Choose one of .csv, .tsv, .jsonl"),
        (["-o", "out.csv", "--logits"], "", "Choose one of .npz, .h5"),
        (["-o", "x.fasta"], "", "the extension selects"),
        (["-o", "out.csv", "--top", "3"], "", "--top is for --infill"),
        (["-o", "out.csv", "--likelihood", "spans"], "", "likelihood 'spans'. It has "),
        (["-o", "out.csv"], "mutant\nP1A\nK2A\n", "one.csv:3: K2A: position 2 of the"),
        (
            ["-o", "out.csv"],
            "mutation\nP1A\n",
            "one.csv:1: there is no column 'mutant'",
        ),
        (["-o", "out.csv"], "mutant,score\nP1A,1\n", "a column 'score' already"),
        (["-o", "out.csv"], "\n", "one.csv: the file is empty"),
        (["-o", "out.csv"], "mutant,x\nP1A\n", "one.csv:2: this row does not have 2"),
        (["-o", "out.csv"], "mutant,DMS_score\nP1A,hi\n", "DMS_score is 'hi'"),
        (
            ["-o", "out.csv"],
            "mutant,mutated_sequence\nP1A,ARTD\n",
            "one.csv:2: P1A does not give mutated_sequence: position 4 is D instead of",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    run, tmp_path, arguments, table, words, capsys
):
    if table:
        (tmp_path / "one.csv").write_text(table)
        arguments = [*arguments, "--variants", "one.csv"]
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_an_existing_output_is_kept_unless_told_otherwise(run, tmp_path, capsys):
    (tmp_path / "out.csv").write_text("mine")
    assert run("-o", "out.csv", "--one-pass") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert run("-o", "out.csv", "--one-pass", "--overwrite") == 0
    assert len(_rows("out.csv")) == 2


def test_a_table_of_variants_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("mutant\nP1A\n")
    assert run("-o", "one.csv", "--variants", "one.csv", "--overwrite") == 2
    assert "one.csv is an input too" in capsys.readouterr().err
    assert (tmp_path / "one.csv").read_text() == "mutant\nP1A\n"


def test_a_correlation_that_is_not_defined_is_named(run, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("mutant,DMS_score\nP1A,1.5\nP1C,\n")
    assert run("-o", "out.csv", "--variants", "one.csv") == 0
    said = capsys.readouterr().out
    assert "one: Spearman not defined over 1 of 2 variants" in said
