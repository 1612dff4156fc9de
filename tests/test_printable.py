"""Names from files never reach the terminal as control characters."""

import logging

import numpy as np
import pytest

from prottrans_jax import cli, printable
from prottrans_jax.embed import writers
from prottrans_jax.proteins import fasta, fasta_problems

CLEAR = "\x1b[2J\x1b]0;title\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\rb\bc\x7f", r"a\x0db\x08c\x7f".replace(r"\x0d", r"\r")),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u200d", r"a\u202eb\u200d"),
        ("\ud800", r"\ud800"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Prot\u00e9ine \u86cb\u767d", "Prot\u00e9ine \u86cb\u767d"),
    ],
)
def test_control_and_invisible_characters_are_shown_as_escapes(text, shown):
    assert printable.plain(text) == shown


def test_an_id_with_escape_sequences_is_refused_and_shown_escaped(tmp_path):
    source = tmp_path / "x.fasta"
    source.write_text(f">a{CLEAR}\nMKV\n")
    with pytest.raises(fasta_problems.FastaError) as error:
        list(fasta.read([source]))
    assert r"a\x1b[2J" in str(error.value) and "\x1b" not in str(error.value)
    # The name goes into the lists of records that are left out.
    assert error.value.problem.name == r"a\x1b[2J\x1b]0;title\x07"


def test_keys_with_escape_sequences_are_shown_escaped(tmp_path, capfd):
    path = tmp_path / "x.npz"
    writer = writers.create(path, {})
    writer.add(writers.Entry(f"a{CLEAR}", "a", "", 2, "", np.ones((2, 3), "f4")))
    writer.close()
    assert cli.main(["info", str(path)]) == 0
    printed = "".join(capfd.readouterr())
    assert r"a\x1b[2J" in printed and "\x1b" not in printed


def test_errors_that_quote_a_name_are_shown_escaped(tmp_path, capfd):
    path = tmp_path / "x.csv"
    path.write_text(f"id,0\na{CLEAR},not a number\n")
    assert cli.main(["verify", str(path)]) == 3
    printed = "".join(capfd.readouterr())
    assert r"a\x1b[2J" in printed and "\x1b" not in printed


def test_names_in_the_log_are_shown_escaped(caplog):
    from absl import logging as absl_logging

    printable.guard_logs()
    handler = absl_logging.get_absl_handler()
    record = logging.LogRecord("x", logging.WARNING, "", 1, "%s", (CLEAR,), None)
    handler.filter(record)
    assert record.getMessage() == r"\x1b[2J\x1b]0;title\x07"
