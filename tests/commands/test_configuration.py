"""Flags from a file: the same as typed, and outdone by what is typed."""

import json
import pathlib

from absl import logging
import h5py
import pytest

from cases import embed_cases
from prottrans_jax import cli
from prottrans_jax.commands import embedding


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return embed_cases.make_model(tmp_path_factory.mktemp("config") / "tiny", seed=0)


@pytest.fixture
def given(tmp_path):
    proteins = embed_cases.random_proteins(3, seed=5)
    source = embed_cases.write_fasta(tmp_path / "x.fasta", proteins)
    return ["embed", "-i", str(source), "-o", str(tmp_path / "out.h5")]


@pytest.mark.parametrize("write", [json.dumps, lambda values: _yaml(values)])
def test_file_gives_flags_and_the_command_line_wins(model, given, tmp_path, write):
    config = tmp_path / "run.config"
    values = {
        "model": str(model),
        "per_protein": True,
        "layers": [0, -1],
        "output-dtype": "float16",
        "max-length": 5000,
        "resume": False,
        "chunk-overlap": None,
        "quiet": True,
    }
    config.write_text(write(values))
    typed = ["--config", str(config), "--output-dtype", "float32"]
    assert cli.main([*given, *typed]) == 0
    with h5py.File(given[-1]) as file:
        assert {value.shape for value in file.values()} == {(2, 12)}
        assert {value.dtype.name for value in file.values()} == {"float32"}
    options = json.loads(pathlib.Path(f"{given[-1]}.json").read_text())["options"]
    assert options["max_length"] == 5000 and options["resume"] is False


def _yaml(values):
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["# Settings of our group", *lines])


def test_every_fault_of_a_file_is_listed(given, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "max_lenght: 30\nmax-batch: 2.5\nlong: [skip]\noutput-dtype: float8\n"
        "overwrite: 1\ninput: x.fasta\n"
    )
    assert cli.main([*given, "--config", str(config)]) == 2
    said = capsys.readouterr().err
    for words in (
        str(config),
        "max_lenght: there is no flag --max-lenght. Did you mean max-length",
        "max-batch: 2.5: expected a whole number",
        "'float8' is not known. Choose one of float16, float32",
        "overwrite: 1 is neither true nor false",
        "--input can only be set on the command line",
    ):
        assert words in said, said
    assert "long:" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "a list, not a mapping"),
        ("a: [", "line 1: neither YAML nor JSON"),
        ("max-length: [30", "neither YAML nor JSON"),
        ("long: skip\nlong: chunk\n", "line 2: long already has a value, in line 1"),
        ("max-length: 9\nmax_length: 8\n", "max_length: a second value"),
        ("max-length: many", "max-length: 'many': expected a whole number"),
        ("max-length: .inf", "max-length: inf: expected a whole number"),
        ("max-length: true", "max-length: True: expected a whole number"),
        ("max-length: -5", "max_length=-5"),
        ("commit-seconds: .nan", "commit-seconds: nan: expected a finite number"),
        ("model: true", "model: True: expected text in quotes"),
        ("revision: 1.10", "revision: 1.1: expected text in quotes"),
        ("model: {a: b}", "model: {'a': 'b'}: expected text in quotes"),
        ("model: !!python/object/apply:os.system [id]", "neither YAML nor JSON"),
        ("a: &x [1]\nmodel: [*x, *x]", "line 2: aliases such as *x are not supported"),
        ("model: " + "[" * 3000, "its brackets are nested too deeply"),
        ("model: " + "x" * (1 << 20), "a file of flags has at most 1,048,576"),
    ],
)
def test_fault_of_a_file_is_one_line(given, tmp_path, capsys, text, words):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert cli.main([*given, "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


def test_file_that_is_no_text_is_named(given, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_bytes(b"max-length: \xff\xfe")
    assert cli.main([*given, "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert f"{config}: is not text in UTF-8" in said and said.count("\n") == 1


@pytest.mark.parametrize("spelling", ["3000", "3_000", "3e3", "3000.0"])
def test_whole_number_may_be_spelled_in_any_way(spelling, tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        embedding, "_embed", lambda arguments: lengths.append(arguments.max_length) or 0
    )
    config = tmp_path / "run.yaml"
    config.write_text(f"max-length: {spelling}")
    given = ["embed", "-i", "x.fasta", "-o", "x.h5"]
    assert cli.main([*given, "--config", str(config)]) == 0
    assert cli.main([*given, "--max-length", spelling]) == 0
    assert lengths == [3000, 3000]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-length", "1.5"), ("--max-batch", "ten"), ("--commit-seconds", "nan")],
)
def test_flag_of_another_type_is_one_line(flag, value, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", "-i", "x.fasta", "-o", "x.h5", flag, value])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"{flag}: {value!r}: expected a" in said and said.count("\n") == 1


def test_empty_file_changes_nothing_and_a_lost_one_is_named(given, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("")
    status = cli.main([*given, "--config", str(config), "-m", "no/where/at/all"])
    assert status == 2 and "no such folder" in capsys.readouterr().err
    assert cli.main([*given, "--config", str(tmp_path / "lost.yaml")]) == 2
    assert "lost.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ([], logging.WARNING),
        (["-q"], logging.ERROR),
        (["-v"], logging.INFO),
        (["-v", "--log-level", "DEBUG"], logging.DEBUG),
    ],
)
def test_log_level_follows_the_flags(flags, level, capsys):
    before = logging.get_verbosity()
    try:
        assert cli.main(["models", "--json", *flags]) == 0
        assert logging.get_verbosity() == level
    finally:
        logging.set_verbosity(before)
