"""The commands: leaves of published tasks, standard input, and mistakes in one line."""

import io
import pathlib
import sys

import pytest

from cases import embed_cases
from prottrans_jax import cli
from prottrans_jax.config import building
from prottrans_jax.downstream import finetuning, heads, published_tasks
from prottrans_jax.optimizers import algorithms

LEAVES = pathlib.Path(__file__).resolve().parents[2] / "gin" / "finetune"


def test_every_published_task_has_a_leaf():
    assert {leaf.stem for leaf in LEAVES.glob("*.gin")} == set(published_tasks.TASKS)


@pytest.mark.parametrize("name", published_tasks.TASKS)
def test_leaf_trains_a_head_that_fits_its_task(name):
    files = [f"finetune/{name}.gin"]
    bindings = ["DATA = 'labels.csv'", "MODEL_DIR = 'run'"]
    building.parse(files, bindings)
    bound = building.bound(finetuning.finetune)
    task = published_tasks.get(building.build("%TASK")).task
    head = heads.make(building.build(bound["head"]), task.level, task.num_outputs)
    assert head.outputs == task.num_outputs
    # biotrainer's AutoEval.
    optimizer = building.build(bound["optimizer"])
    assert optimizer == algorithms.AdamW(learning_rate=1e-3, eps=1e-8, weight_decay=0.0)
    assert building.build(bound["batch_size"]) == 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    model = embed_cases.make_model(folder / "model", seed=0)
    lines = ["sequence,label,split"]
    lines += [f"MK{'ACD'[i % 3] * (4 + i)},{i / 7},train" for i in range(12)]
    lines += ["MKTAYIAKQR,0.25,val", "MKTAYI,0.5,val", "MKTA,0.75,val"]
    (folder / "labels.csv").write_text("\n".join(lines))
    flags = ["--task", folder / "labels.csv", "-m", model, "-o", folder / "run"]
    flags += ["--epochs", 1, "--batch-size", 8, "--no-progress"]
    assert cli.main(["finetune", *map(str, flags)]) == 0
    return folder


def _predict(folder, *flags):
    return cli.main(
        ["predict", "--head", str(folder / "run"), "--no-progress", *map(str, flags)]
    )


def test_finetune_says_what_the_metric_is(trained, capsys):
    flags = ["-m", trained / "model", "-o", trained / "run", "--epochs", "1"]
    flags += ["--batch-size", "8", "--task", trained / "labels.csv"]
    # Nothing is left to do: the same command prints the result again.
    assert cli.main(["finetune", "--no-progress", *map(str, flags)]) == 0
    said = capsys.readouterr().err
    assert "validation: spearman" in said and "95 % interval" in said
    assert f"--head {trained / 'run'}" in said


def test_predict_reads_standard_input(trained, tmp_path, monkeypatch):
    text = b">first\nMKTAY\n>second\nMK\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert _predict(trained, "-i", "-", "-o", tmp_path / "out.tsv") == 0
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id", "first", "second"]


def test_omitted_proteins_give_status_3(trained, tmp_path):
    (tmp_path / "in.fasta").write_text(">long\nMKTAYIAKQR\n>short\nMK\n")
    flags = ["-i", tmp_path / "in.fasta", "-o", tmp_path / "out.jsonl"]
    assert _predict(trained, *flags, "--max-length", 5, "--long", "skip") == 3
    assert "long" in (tmp_path / "out.jsonl.probabilities.h5.skipped.tsv").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-o", "out.pdf"], "'.pdf' is none of"),
        (["-o", "out.tsv", "--head", "nowhere"], "nowhere: there is no head"),
        (["-o", "out.tsv", "-m", "OTHER"], "the head predicts from vectors of"),
    ],
)
def test_mistakes_are_one_line_with_status_2(
    trained, tmp_path, monkeypatch, capsys, flags, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.fasta").write_text(">first\nMKTAY\n")
    if "OTHER" in flags:
        embed_cases.make_model(tmp_path / "OTHER", seed=1)
    head = [] if "--head" in flags else ["--head", str(trained / "run")]
    assert cli.main(["predict", "-i", "in.fasta", *head, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out.tsv").exists()
