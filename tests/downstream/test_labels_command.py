"""`prottrans labels` describes files and ends with status 3 if they have problems."""

import json

import pytest

from prottrans_jax import cli


def write(path, *rows):
    path.write_text("\n".join(["id,sequence,location,split", *rows]) + "\n")
    return str(path)


def test_describes_a_file(tmp_path, capsys):
    path = write(
        tmp_path / "x.csv",
        *("a,MKV,Nucleus,train", "b,MKVW,Plastid,train"),
        *("c,M,Nucleus,test", "d,MW,Cytoplasm-Nucleus,test"),
    )
    assert cli.main(["labels", path]) == 0
    printed = capsys.readouterr().out
    for words in (
        *("task               location", "level              protein"),
        *("proteins           3", "residues           8"),
        *("lengths            shortest 1, median 3, longest 4",),
        *("splits             train 2, test 1", "Nucleus 2, Peroxisome 0, Plastid 1"),
        "1 protein with the unknown label 'Cytoplasm-Nucleus' left out",
    ):
        assert words in printed


def test_json_has_every_task_of_the_file(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("input,dssp3,disorder\nMKV,HHC,1 1 0\n")
    assert cli.main(["labels", str(path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["tasks"]
    assert (first["task"], first["classes"]) == (
        "secondary_structure_3",
        {"H": 2, "E": 0, "C": 0},
    )
    assert (second["task"], second["classes"]) == (
        "disorder",
        {"ordered": 2, "disordered": 1},
    )


def test_problems_are_printed_and_set_the_status(tmp_path, capsys):
    path = write(tmp_path / "x.csv", "a,MKV,Nucleus,train", "b,M1,Plastid,test")
    assert cli.main(["labels", path]) == 3
    printed = capsys.readouterr().out
    assert f"problem            {path}:3: record 'b': '1' at position 2" in printed
    assert "1 record left out for problems" in printed


def test_same_protein_in_files_of_two_splits_is_a_problem(tmp_path, capsys):
    paths = [
        write(tmp_path / f"{split}.csv", f"{name},MKV,Nucleus,{split}")
        for name, split in (("a", "train"), ("b", "test"))
    ]
    assert cli.main(["labels", *paths]) == 3
    assert "and b (test, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "status", "words"),
    [
        ("", [], 3, "the file is empty"),
        ("id,sequence\na,MKV\n", [], 2, "no column holds labels"),
        (
            "id,sequence,membrane\na,MKV,M\n",
            ["--unknown", "no"],
            2,
            "no rule 'no' for unknown labels; rules: drop, keep, soluble, membrane",
        ),
        (None, [], 2, "No such file"),
    ],
)
def test_unusable_files_and_flags(tmp_path, capsys, text, arguments, status, words):
    path = tmp_path / "x.csv"
    if text is not None:
        path.write_text(text)
    assert cli.main(["labels", str(path), *arguments]) == status
    assert words in capsys.readouterr().err
