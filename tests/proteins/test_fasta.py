"""FASTA of every kind is read as Biopython reads it, or refused by file and line."""

import bz2
import gzip
import io
import lzma
import re
from unittest import mock

from Bio import SeqIO
import hypothesis
from hypothesis import strategies as st
import pytest

from cases import stream_cases
from prottrans_jax.proteins import fasta, fasta_blocks, fasta_problems

# What becomes of each of the damaged files: records read, then for each problem its
# line and reason. "" where every record is fine.
MESSY = {
    "blank_lines_tabs.fasta": (5, []),
    "bom_no_final_newline.fasta": (5, []),
    "cr_only.fasta": (5, []),
    "crlf.fasta": (5, []),
    "dna_by_mistake.fasta": (1, []),  # Every letter is a residue; see `nucleotides`.
    "duplicate_ids.fasta": (5, []),  # `prepare` finds them.
    "empty.fasta": (0, [(0, "file without records")]),
    "gz_without_suffix.fasta": (5, []),
    "header_only.fasta": (0, [(k, "no residues") for k in (1, 2, 3, 4, 5)]),
    "illegal_amino_acids.fasta": (3, []),  # O, U and the like: X for the models.
    "latin1_header.fasta": (0, [(1, "header is not UTF-8")]),
    "length_edges.fasta": (13, []),
    "mixed_problems.fasta": (
        8,
        [
            (17, "a stop inside a sequence"),
            (37, "a character that is no residue"),
            (42, "no residues"),
            (47, "no residues"),
        ],
    ),
    "multi_member.fasta.gz": (5, []),
    "no_header_first.fasta": (5, [(1, "text before the first header")]),
    "odd_ids.fasta": (4, [(7, "header without an id")]),
    "ok.fasta.gz": (5, []),
    "only_newlines.fasta": (0, [(0, "file without records")]),
    "openfold_6KWC_head.a3m": (60, []),
    "plain_with_gz_suffix.fasta.gz": (5, []),
    "rare_residues.fasta": (20, []),
    "semicolon_comments.fasta": (5, []),
    "seqwence-protein.fasta": (2, []),
    "titin_twice.fasta.gz": (1, []),  # One header, twice the sequence.
    "truncated.fasta.gz": (4, [(24, "compressed file cut short")]),
    "unparsable.fasta": (2, [(4, "a character that is no residue")]),
    "utf8_header.fasta": (2, []),
}


def read(path):
    problems = []
    records = list(fasta.read([path], on_problem=problems.append))
    return records, problems


def test_the_table_of_damaged_files_is_complete(shared):
    names = {p.name for p in (shared / "data/messy").iterdir()}
    assert names - {"MANIFEST.tsv"} == set(MESSY) and len(MESSY) == 27


@pytest.mark.parametrize("name", MESSY)
def test_outcome_for_each_damaged_file(shared, name):
    path = shared / "data/messy" / name
    count, expected = MESSY[name]
    records, problems = read(path)
    assert len(records) == count
    assert [(p.line, p.reason) for p in problems] == expected
    assert all(r.residues.isalpha() and r.residues.isupper() for r in records)
    if expected:
        line, _ = expected[0]
        where = f"{path}:{line}: " if line else f"{path}: "
        with pytest.raises(fasta_problems.FastaError, match=re.escape(where)):
            list(fasta.read([path]))


def test_the_same_five_records_in_every_wrapping(shared):
    folder = shared / "data/messy"
    expected = [tuple(r)[:2] for r in read(folder / "ok.fasta.gz")[0]]
    for name in (
        *("crlf.fasta", "cr_only.fasta", "bom_no_final_newline.fasta"),
        *("blank_lines_tabs.fasta", "semicolon_comments.fasta"),
        *("gz_without_suffix.fasta", "multi_member.fasta.gz"),
        "plain_with_gz_suffix.fasta.gz",
    ):
        assert [r.residues for r in read(folder / name)[0]] == [s for _, s in expected]


def parse(tmp_path, text: bytes):
    path = tmp_path / "x.fasta"
    path.write_bytes(text)
    return read(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_known_by_their_content(tmp_path, pack):
    records, problems = parse(tmp_path, pack(b">a\nMK\n") + pack(b">b\nAC\n"))
    assert [r.residues for r in records] == [b"MK", b"AC"] and not problems


def test_a_packed_file_with_a_changed_byte_is_never_skipped_over(tmp_path):
    data = bytearray(gzip.compress(b">a\nMKV\n" * 100))
    data[-6] ^= 1  # Of the checksum.
    with pytest.raises(fasta_problems.FastaError, match=r"x.fasta:1: cannot be read"):
        parse(tmp_path, bytes(data))


def test_every_cut_of_a_packed_file_is_noticed(tmp_path):
    data = gzip.compress(b"".join(b">p%d\nMKVACD\n" % i for i in range(50)))
    for cut in range(3, len(data), 7):
        records, problems = parse(tmp_path, data[:cut])
        assert [p.reason for p in problems] == ["compressed file cut short"]
        assert all(r.residues == b"MKVACD" for r in records)


def test_standard_input(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(b">a\nMK\n")))
    monkeypatch.setattr("sys.stdin", stdin)
    [record] = fasta.read(["-"])
    assert record == (b"a", b"MK", 1)


def test_a_genome_is_refused(monkeypatch):
    monkeypatch.setattr(fasta, "MAX_RECORD_BYTES", 1000)
    genome = b">ok\nMK\n>chr1 human\n" + b"ACGT" * 1000
    with pytest.raises(
        fasta_problems.FastaError, match=r":3: record 'chr1 human' has over"
    ):
        stream_cases.read(genome, 100, block_bytes=100)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_reads_may_end_between_cr_and_lf(size):
    text = b">a\r\nMK\r\n\r\nV\r\n>b\r\nAC\r\n>c\rD"
    records, problems = stream_cases.read(text, size)
    assert records == [(b"a", b"MKV", 1), (b"b", b"AC", 5), (b"c", b"D", 7)]
    assert not problems


words = st.text("abcXYZ019|_.", min_size=1, max_size=8)
sequences = st.text("ACDEFGHIKLMNPQRSTVWYXBZUOJacd", min_size=1, max_size=40)


@st.composite
def valid_files(draw):
    """Text that Biopython reads too: wrapped, with blank lines, of any line ends."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for name, rest, sequence in draw(
        st.lists(st.tuples(words, words, sequences), min_size=1, max_size=6)
    ):
        lines.append(f">{name} {rest}")
        width = draw(st.integers(1, 50))
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
        lines += [""] * draw(st.integers(0, 2))
    return end.join(lines) + draw(st.sampled_from(["", end]))


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(text=valid_files(), size=st.integers(1, 200))
def test_valid_files_are_read_as_biopython_reads_them(tmp_path_factory, text, size):
    path = tmp_path_factory.getbasetemp() / "valid.fasta"
    path.write_bytes(text.encode())
    handle = io.StringIO(text.replace("\r\n", "\n"))
    expected = [(r.id, str(r.seq).upper()) for r in SeqIO.parse(handle, "fasta")]
    found, lines = [], []
    for block in fasta.blocks(path, block_bytes=10 * size):
        with mock.patch.object(fasta_blocks, "PARSE_BYTES", size):
            parsed = fasta_blocks.parse(block)
        assert not block.problems and not parsed.problems
        pairs = zip(parsed.names, parsed.residues, strict=True)
        found += [(n.decode(), s.decode()) for n, s in pairs]
        lines += parsed.lines
    assert found == expected
    headers = [i for i, t in enumerate(text.splitlines(), 1) if t.startswith(">")]
    assert lines == headers


_BYTES = st.lists(
    st.sampled_from(
        [b">", b"\n", b"\r", b"A", b"mk", b" ", b"\t", b"\0", b"*", b"-", b";", b"\xe9"]
    ),
    max_size=60,
).map(b"".join)


@hypothesis.settings(max_examples=500, deadline=None, derandomize=True)
@hypothesis.given(text=_BYTES, size=st.integers(1, 30))
def test_any_bytes_give_records_or_problems_and_blocks_do_not_matter(
    tmp_path_factory, text, size
):
    path = tmp_path_factory.getbasetemp() / "any.fasta"
    path.write_bytes(text)
    outcomes = []
    for block_bytes in (size, 1 << 20):
        records, problems = [], []
        stream = stream_cases.ShortReads(text, block_bytes)
        with mock.patch.object(fasta_blocks, "PARSE_BYTES", size):
            try:
                for block in fasta.blocks(path, block_bytes=block_bytes, stream=stream):
                    parsed = fasta_blocks.parse(block)
                    names, residues = parsed.names, parsed.residues
                    records += zip(names, residues, parsed.lines, strict=True)
                    problems += [*block.problems, *parsed.problems]
            except fasta_problems.FastaError as error:  # Text without any header.
                assert not records
                problems = [error.problem]
        outcomes.append((records, problems))
    assert outcomes[0] == outcomes[1]
    records, problems = outcomes[0]
    starts = re.findall(rb"(?:^|[\r\n])>", text)
    before = sum("header" in p.reason and "first" in p.reason for p in problems)
    empty = sum(p.reason == "file without records" for p in problems)
    assert len(records) + len(problems) - before - empty == len(starts)
