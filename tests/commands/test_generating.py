"""`prottrans generate`: files, messages and exit statuses."""

import json

import jax
import numpy as np
import pytest

from prottrans_jax import cli
from prottrans_jax.interop import huggingface
from prottrans_jax.models import t5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = t5.T5Config(
        vocab_size=128,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=8,
        d_model=24,
        d_ff=40,
    )
    folder = tmp_path_factory.mktemp("generating") / "tiny"
    params = t5.init_params(config, jax.random.key(1))
    huggingface.write(folder, config, jax.tree.map(np.asarray, params))
    return folder


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, status=0):
        assert cli.main(["generate", "-m", str(model), *arguments]) == status

    return call


def test_fasta_has_likelihood_and_settings_in_its_header(run, tmp_path):
    run("--prompt", "mkt", "--length", "70", "-n", "2", "-o", "x.fasta", "--top-p=0.9")
    lines = (tmp_path / "x.fasta").read_text().split("\n")
    assert [len(line) for line in lines if line[:1] != ">"] == [60, 10, 60, 10, 0]
    name, *words = lines[0].split(" ")
    fields = dict(word.split("=") for word in words)
    assert name == ">generated_1" and float(fields.pop("log_likelihood")) < 0
    assert fields == {
        "sampled": "67",
        "ended": "false",
        "model": "tiny",
        "seed": "0",
        "length": "70",
        "top_p": "0.9",
    }
    assert lines[1].startswith("MKT")


def test_json_lines_and_proteins_of_a_file(run, tmp_path):
    (tmp_path / "in.fasta").write_text(">a/b one\nMKXXA\n>c\nMX\n")
    run("-i", "in.fasta", "-o", "x.jsonl", "--seed", "3")
    records = [json.loads(x) for x in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["a/b_1", "c_1"]
    assert records[0]["sequence"][:2] == "MK" and records[0]["sequence"][-1] == "A"
    assert records[0]["settings"] == {"model": "tiny", "seed": 3}


def test_an_output_is_replaced_only_with_overwrite(run, tmp_path, capsys):
    (tmp_path / "x.fasta").write_text("mine")
    run("--prompt", "MX", "-o", "x.fasta", status=2)
    assert (tmp_path / "x.fasta").read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    run("--prompt", "MX", "-o", "x.fasta", "--overwrite")
    assert (tmp_path / "x.fasta").read_text().startswith(">generated_1 ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-o", "x.fasta"], 2, "one of --prompt and --input"),
        (["-o", "x.fasta", "--prompt", "M", "-i", "in.fasta"], 2, "one of --prompt"),
        (["-o", "x.fasta", "--prompt", "M>"], 2, "letters only"),
        (["-o", "x.txt", "--prompt", "MX"], 2, "Choose one of .fasta"),
        (["-o", "x.fasta", "--prompt", "MX", "--top-p", "2"], 2, "top_p=2"),
        (["-o", "x.fasta", "--prompt", "MX", "--greedy", "-n", "2"], 2, "greedy"),
        (["-o", "x.fasta", "--prompt", "MKT"], 2, "no residue is X"),
        (["-o", "x.fasta", "-i", "absent.fasta"], 2, "absent.fasta"),
        (["-o", "x.fasta", "-i", "same.fasta"], 2, "two proteins with the id a"),
        (["-o", "same.fasta", "-i", "same.fasta"], 2, "is an input too"),
        (["-o", "x.fasta", "-i", "bad.fasta"], 3, "bad.fasta"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, status, words, capsys):
    (tmp_path / "same.fasta").write_text(">a\nMX\n>a\nMXX\n")
    (tmp_path / "bad.fasta").write_text("MKT\n")
    run(*arguments, status=status)
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "x.fasta").exists()
