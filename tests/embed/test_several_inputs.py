"""Several FASTA files are one input, as if they were concatenated."""

import io
import json
import sys

import pytest

from cases.embed_cases import embed, make_model, random_proteins, read, write_fasta
from prottrans_jax import cli
from prottrans_jax.embed import inputs, verifying
from prottrans_jax.files import paths
from prottrans_jax.proteins import fasta_problems


@pytest.fixture
def three(tmp_path):
    """Three files with 4, 1 and 5 of 10 proteins, and one with all."""
    proteins = list(random_proteins(10).items())
    parts = [proteins[:4], proteins[4:5], proteins[5:]]
    several = [
        write_fasta(tmp_path / f"{name}.fasta", dict(part))
        for name, part in zip("abc", parts, strict=True)
    ]
    return several, write_fasta(tmp_path / "all.fasta", dict(proteins))


def test_the_output_is_that_of_the_files_joined(encoder, three, tmp_path):
    several, joined = three
    embed(encoder, several, tmp_path / "several.h5")
    embed(encoder, joined, tmp_path / "joined.h5")
    assert (tmp_path / "several.h5").read_bytes() == (
        tmp_path / "joined.h5"
    ).read_bytes()


def test_keys_by_index_run_on_over_all_files(three):
    several, _ = three
    records = inputs.scan(several, key_scheme="index")
    keys = [protein.key for protein in records.proteins()]
    assert keys == [p.key for p in inputs.scan(three[1], key_scheme="index").proteins()]
    places = [protein.place for protein in records.proteins()]
    assert places[3:6] == [f"{several[0]}:7", f"{several[1]}:1", f"{several[2]}:1"]


def test_the_same_record_in_two_files_is_written_once(encoder, three, tmp_path):
    several, _ = three
    report = embed(encoder, [*several, several[0]], tmp_path / "out.h5")
    assert (report.embedded, report.repeated) == (10, 4)


def test_an_id_with_other_residues_in_a_later_file_names_both_places(tmp_path):
    first = write_fasta(tmp_path / "a.fasta", {"x": "MKT", "P": "MKV"})
    second = write_fasta(tmp_path / "b.fasta", {"P": "MKW"})
    with pytest.raises(ValueError, match=rf"'P' at {first}:3 and {second}:1\."):
        inputs.scan([first, second])
    records = inputs.scan([first, second], on_duplicate="first")
    assert [s.detail for s in records.skipped] == [
        f"{second}:1: 'P' occurred before with another sequence."
    ]
    records = inputs.scan([first, second], on_duplicate="suffix")
    assert [protein.key for protein in records.proteins()] == ["x", "P", "P_2"]


def test_a_bad_record_names_its_own_file(tmp_path):
    first = write_fasta(tmp_path / "a.fasta", {"P": "MKV"})
    (tmp_path / "b.fasta").write_text(">Q\nMKV\n>R\nM1V\n")
    with pytest.raises(fasta_problems.FastaError, match=r"b\.fasta:4: "):
        inputs.scan([first, tmp_path / "b.fasta"])


def test_what_is_left_out_names_its_own_file(tmp_path):
    first = write_fasta(tmp_path / "a.fasta", {"P": "MKV"})
    second = write_fasta(tmp_path / "b.fasta", {"Q": "MKVMKV"})
    records = inputs.scan([first, second])
    records.leave_out(records.lengths > 3, "long", lambda p: "too long")
    assert [s.detail for s in records.skipped] == [f"{second}:1: too long"]


def test_output_json_names_all_files_with_their_digests(encoder, three, tmp_path):
    several, joined = three
    embed(encoder, several, tmp_path / "out.h5")
    about = json.loads((tmp_path / "out.h5.json").read_text())["input"]
    assert [file["path"] for file in about["files"]] == list(map(str, several))
    assert [file["sha256"] for file in about["files"]] == [
        inputs.scan(path).sha256 for path in several
    ]
    assert len({about["sha256"], inputs.scan(joined).sha256}) == 2
    # Whole already: nothing is computed again, nor for other files.
    assert embed(encoder, several, tmp_path / "out.h5").reused == 10
    report = embed(encoder, several[:2], tmp_path / "out.h5")
    assert (report.reused, report.embedded) == (5, 0)


def test_standard_input_is_one_of_several(encoder, three, tmp_path, monkeypatch):
    several, joined = three

    class Stdin:
        buffer = io.BytesIO(several[1].read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    embed(encoder, [several[0], "-", several[2]], tmp_path / "out.h5")
    embed(encoder, joined, tmp_path / "joined.h5")
    assert list(read(tmp_path / "out.h5")) == list(read(tmp_path / "joined.h5"))
    with pytest.raises(paths.PathError, match="only once"):
        embed(encoder, ["-", "-"], tmp_path / "x.h5")
    with pytest.raises(paths.PathError, match="no file is given"):
        embed(encoder, [], tmp_path / "x.h5")


def test_a_file_is_checked_against_several_inputs(encoder, three, tmp_path):
    several, _ = three
    embed(encoder, several, tmp_path / "out.h5")
    expected, unusable = verifying.expected(several, "auto")
    assert len(expected) == 10 and not unusable


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("several") / "tiny", seed=0)


def test_repeated_and_listed_inputs_of_the_command(model, three, tmp_path, capsys):
    (first, second, third), _ = three
    output = str(tmp_path / "out.h5")
    flags = ["-i", str(first), "-i", str(second), str(third)]
    assert cli.main(["embed", *flags, "-o", output, "-m", str(model)]) == 0
    assert len(read(output)) == 10
    flags = ["-i", str(first), "-i", str(second), "-i", str(third)]
    assert cli.main(["verify", *flags, output]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "b.h5"], "-o is set twice, to a.h5 and b.h5"),
        (["--output", "b.h5"], "--output is set twice, to a.h5 and b.h5"),
        (["-m", "x", "--model", "y"], "--model is set twice, to x and y"),
        (["--layer", "1", "--layers", "2"], "--layers is set twice, to 1 and 2"),
        (["--max-length", "1", "--max-length", "2"], "to 1 and 2"),
        (["--per-protein", "1", "--per-protein", "0"], "to 1 and 0"),
        (["--resume", "--no-resume"], "--no-resume is set twice"),
    ],
)
def test_a_flag_given_twice_is_refused_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", "-i", "a.fasta", "-o", "a.h5", *words])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
