"""Flags from a file: the same as typed, and outdone by what is typed."""

import json
import pathlib
import sys

from absl import logging
import h5py
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "embed"))
import embed_cases

from prottrans_jax import cli


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
        "max-batch: 2.5 is no whole number",
        "'float8' is not known. Choose one of float16, float32",
        "overwrite: 1 is neither true nor false",
        "--input is given on the command line",
    ):
        assert words in said, said
    assert "long:" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "a list, not a mapping"), ("a: [", "neither YAML nor JSON")],
)
def test_what_is_no_mapping_is_refused(given, tmp_path, capsys, text, words):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert cli.main([*given, "--config", str(config)]) == 2
    assert words in capsys.readouterr().err


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
def test_log_says_as_much_as_was_asked_for(flags, level, capsys):
    before = logging.get_verbosity()
    try:
        assert cli.main(["models", "--json", *flags]) == 0
        assert logging.get_verbosity() == level
    finally:
        logging.set_verbosity(before)
