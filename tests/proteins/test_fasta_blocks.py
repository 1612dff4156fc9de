"""Every record of a block is clean, or refused by line and name."""

import pytest

from prottrans_jax.proteins import fasta_blocks


def parse(text: bytes):
    return fasta_blocks.parse(fasta_blocks.Block("x", 1, text))


def test_gaps_and_final_stops_are_taken_out_and_counted():
    parsed = parse(b">a\nMK-T.l\nA*\n>b\nM*-\n>c\nACD\n")
    assert parsed.residues == [b"MKTLA", b"M", b"ACD"]
    assert (parsed.num_gaps, parsed.num_stops) == (3, 2)


@pytest.mark.parametrize(
    "text, line, column, char",
    [
        (b">a\nMKT\nM1T\n", 3, 2, b"1"),
        (b">a\nMK\0T\n", 2, 3, b"\0"),
        (b">a\nM*T\n", 2, 2, b"*"),
        (b">a\nMK\n*\nT\n", 3, 1, b"*"),
        (b">a\nMK\n\n;MK1\n  T?\n", 5, 4, b"?"),
        (b">a\nMK\nM>T\n", 3, 2, b">"),
    ],
)
def test_an_invalid_character_is_named(text, line, column, char):
    parsed = parse(b">first\nMKV\n" + text + b">last\nACD\n")
    [problem] = parsed.problems
    assert parsed.names == [b"first", b"last"]
    assert (problem.line, problem.name) == (line + 2, "a")
    assert f"{char.decode()!r} at column {column} of record 'a'" in problem.detail


@pytest.mark.parametrize(
    "header, reason",
    [
        (b"", "header without an id"),
        (b" \t ", "header without an id"),
        (b"a\0b", "control character in a header"),
        (b"a b\0", "control character in a header"),
        (b"\xe9tude", "header is not UTF-8"),
        (b"a\x1b[2Jb", "control character in a header"),
        (b"x" * 4097, "id too long"),
    ],
)
def test_headers_that_are_refused(header, reason):
    parsed = parse(b">a\nMK\n>" + header + b"\nMK\n")
    [problem] = parsed.problems
    assert parsed.names == [b"a"]
    assert (problem.line, problem.reason) == (3, reason)


@pytest.mark.parametrize(
    "header, name",
    [
        (b"sp|P1|X_Y some words", "sp|P1|X_Y"),
        (b"  a b", "a"),
        (b"\ta\tb", "a"),
        ("étude β".encode(), "étude"),
        (b"../../etc/passwd", "../../etc/passwd"),
    ],
)
def test_the_id_is_the_first_word(header, name):
    parsed = parse(b">" + header + b"\nMK\n")
    assert parsed.names == [name.encode()] and not parsed.problems


def test_whole_headers_on_request():
    plain = b">sp|P1|A  Some protein OS=x\nMK\n>q two words\nAC\n"
    odd = plain + b">r an odd one\nmk-a*\n"
    for text, rest in ((plain, []), (odd, [b"r an odd one"])):
        block = fasta_blocks.Block("x", 1, text)
        found = fasta_blocks.parse(block, headers=True)
        assert found.headers == [
            b"sp|P1|A  Some protein OS=x",
            b"q two words",
            *rest,
        ]
        assert not fasta_blocks.parse(block).headers
