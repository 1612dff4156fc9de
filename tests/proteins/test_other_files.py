"""Packed files and tables are read; other kinds of files are named."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from cases import stream_cases
from prottrans_jax.proteins import fasta, fasta_blocks, fasta_problems, unpacking

TEXT = b">a first\nMKV\n>b\nACD\n"
PROTEINS = [("a", b"MKV"), ("b", b"ACD")]


def zstandard(data):
    return pytest.importorskip("backports.zstd").compress(data)


def lz4(data):
    return pytest.importorskip("lz4.frame").compress(data)


def make_zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def read(path, data):
    path.write_bytes(data)
    problems = []
    records = list(fasta.read([path], on_problem=problems.append))
    return [(r.name.decode(), r.residues) for r in records], problems


PACKERS = [gzip.compress, bz2.compress, lzma.compress, zstandard, lz4]


@pytest.mark.parametrize("pack", [*PACKERS, lambda data: make_zip(x__fasta=data)])
def test_packed_files_are_read_whatever_their_name(tmp_path, pack):
    assert read(tmp_path / "x.txt", pack(TEXT)) == (PROTEINS, [])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("pack", PACKERS)
def test_members_may_begin_anywhere_between_two_reads(pack, size):
    data = b"".join(pack(b">p%d\nMKV\n" % i) for i in range(4))
    records, problems = stream_cases.read(data, size)
    assert [name for name, *_ in records] == [b"p0", b"p1", b"p2", b"p3"]
    assert not problems


@pytest.mark.parametrize("pack", PACKERS)
def test_a_packed_file_that_is_cut_short_keeps_what_is_before(tmp_path, pack):
    data = pack(TEXT * 1000)
    _, problems = read(tmp_path / "x", data[: len(data) - 9])
    assert [p.reason for p in problems] == ["compressed file cut short"]


def test_a_damaged_zstandard_file_is_never_skipped_over(tmp_path):
    zstd = pytest.importorskip("backports.zstd")
    checked = {zstd.CompressionParameter.checksum_flag: True}
    data = bytearray(zstd.compress(TEXT * 1000, options=checked))
    data[-1] ^= 1
    with pytest.raises(
        fasta_problems.FastaError, match="cannot be read after this line"
    ):
        read(tmp_path / "x", bytes(data))


def test_missing_decompression_library_is_named_with_its_pip_command(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "compression.zstd", None)
    monkeypatch.setitem(__import__("sys").modules, "backports.zstd", None)
    with pytest.raises(
        fasta_problems.FastaError, match=r"Zstandard.*pip install backports.zst"
    ):
        read(tmp_path / "x", b"\x28\xb5\x2f\xfd" + b"\0" * 20)


def tar_of_fasta():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("x.fasta")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0" + bytes(30), "a RAR archive"),
        (b"\x1f\x9d\x90" + bytes(30), "compress"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"PAR1" + bytes(9), "a Parquet file"),
        (make_zip(a__fasta=TEXT, b__fasta=TEXT), r"2 files \(a.fasta, b.fasta\)"),
        (make_zip(), "holds 0 files"),
        (make_zip(a__npy=b""), "NumPy"),
        (make_zip(**{"[Content_Types]__xml": b""}), "an Office document"),
        (tar_of_fasta(), "a tar archive"),
        (gzip.compress(gzip.compress(TEXT)), "compressed twice"),
        (TEXT.decode().encode("utf-16"), "UTF-16"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b'<?xml version="1.0"?>\n', "XML"),
        (b'{"id": "a"}\n', "JSON"),
        (b"@read\nACGT\n+\nIIII\n", "FASTQ"),
        (b"LOCUS       X\n", "GenBank"),
        (b"ID   P1_HUMAN\n", "UniProt"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"MKVLAAGIVG\nACDEFG\n", "sequence before the first '>' header"),
        (b"a,MKVLAAGIVG\nb,ACDEFG\n", "A table needs a first row .* id,sequence"),
        (b"a\tMKVLAAGIVG\n", "A table needs a first row"),
    ],
    # Packed data hold the time: as ids they would differ between xdist's workers.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_named_and_never_skipped(tmp_path, data, words):
    with pytest.raises(fasta_problems.FastaError, match=words) as error:
        read(tmp_path / "x.fasta", data)
    assert error.value.problem.fatal


UNIPROT = (
    "Entry\tEntry Name\tProtein names\tSequence\tLength\n"
    'P1\tA_X\t"Odd" name (EC 1)\tMKVLA\t5\n'
    "P2\tB_X\tOther\tacd-e*\t6\n"
)


def test_the_table_of_uniprot_is_read(tmp_path):
    records, problems = read(tmp_path / "x.tsv", gzip.compress(UNIPROT.encode()))
    assert records == [("P1", b"MKVLA"), ("P2", b"ACDE")] and not problems
    path = tmp_path / "y.tsv"
    path.write_text(UNIPROT)
    [block] = fasta.blocks(path)
    parsed = fasta_blocks.parse(block, headers=True)
    assert parsed.headers == [b'P1 "Odd" name (EC 1)', b"P2 Other"]
    assert parsed.lines == [2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "id,sequence\na,MKV\nb,ACD\n",
        "Sequence,x,ID\r\nMKV,1,a\r\n\r\nACD,2,b\r\n",
        '\ufeff"id";"sequence"\n"a";"MK\nV"\n"b";"ACD"',
        "protein_id,protein_sequence\na,M K V\nb,acd\n",
    ],
)
def test_tables_of_id_and_sequence_are_read(tmp_path, text):
    assert read(tmp_path / "x.csv", text.encode()) == (PROTEINS, [])


def test_rows_that_cannot_be_used_are_named_by_line(tmp_path):
    text = b"id,sequence\na,MKV\nb,MK1\nc\n,MKV\ne,\nf,>MK\n\xe9,MK\ng h,ACD\n"
    records, problems = read(tmp_path / "x.csv", text)
    assert records == [("a", b"MKV"), ("g_h", b"ACD")]
    by_line = sorted((p.line, p.reason) for p in problems)
    assert by_line == [
        (3, "a character that is no residue"),
        (4, "row with too few cells"),
        (5, "row without an id"),
        (6, "no residues"),
        (7, "a character that is no residue"),
        (8, "row is not UTF-8"),
    ]
    with pytest.raises(fasta_problems.FastaError, match=r"x.csv:\d: "):
        list(fasta.read([tmp_path / "x.csv"]))
    short = next(p for p in problems if p.line == 4)
    assert short.detail == "the row has 1 cell; id and sequence are in the first 2."


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("Entry\tEntry Name\tLength", "without a column of sequences"),
        ("sequence,target,set", "without a column of ids.*sequence, target, set"),
        ("id,sequence,Sequence", "2 columns of the table are named 'sequence'"),
        ("ID;id;seq", "2 columns of the table are named 'id'"),
    ],
)
def test_a_column_that_is_missing_or_ambiguous_is_named(tmp_path, first, words):
    with pytest.raises(fasta_problems.FastaError, match=words):
        read(tmp_path / "x.csv", f"{first}\na\tb\tc\n".encode())


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_blocks_of_a_table_do_not_change_its_records(tmp_path, size):
    path = tmp_path / "x.csv"
    rows = [f"p{i},{'MKV' * (i + 1)}" for i in range(30)]
    path.write_text("\n".join(["id,sequence", *rows]))
    names, lines = [], []
    for block in fasta.blocks(path, block_bytes=size):
        parsed = fasta_blocks.parse(block)
        names += parsed.names
        lines += parsed.lines
    assert lines == list(range(2, 32)) and len(set(names)) == 30


@pytest.fixture
def limit(monkeypatch):
    """A lower limit for the text of a record: 4 MiB."""
    monkeypatch.setattr(fasta, "MAX_RECORD_BYTES", 4 << 20)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("pack", [*PACKERS, lambda data: make_zip(x__fasta=data)])
def test_a_packed_file_of_one_endless_record_ends_with_its_limit(tmp_path, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(b">a\n" + b"A" * (9 << 20)))
    assert path.stat().st_size < 100_000
    with pytest.raises(fasta_problems.FastaError, match="'a' has over 4 MiB of text"):
        list(fasta.blocks(path))


@pytest.mark.parametrize("pack", PACKERS)
def test_packed_files_are_unpacked_in_pieces_of_bounded_size(pack):
    size = 5 * unpacking.UNPACKED_BYTES + 7
    stream = io.BytesIO(pack(b"A" * size))
    pieces = [len(piece) for piece in unpacking.unpacked(stream, None)]
    assert sum(pieces) == size
    assert max(pieces) <= unpacking.UNPACKED_BYTES


def test_zip_with_a_method_that_is_unpacked_at_once_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.fasta", TEXT)
    with pytest.raises(fasta_problems.FastaError, match="compression method 12"):
        read(tmp_path / "x.zip", buffer.getvalue())


def test_zip_members_are_never_written_to_their_paths(tmp_path):
    data = make_zip(**{"../../x__fasta": TEXT})
    assert read(tmp_path / "x.zip", data) == (PROTEINS, [])
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_xz_that_needs_gigabytes_to_unpack_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    data = lzma.compress(TEXT, filters=filters)
    with pytest.raises(fasta_problems.FastaError, match="over 256 MiB to decompress"):
        read(tmp_path / "x.xz", data)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(
    "text",
    [
        b"a," + b"A" * (5 << 20),
        b'a,"A\n' + b"A\n" * (3 << 20),
        b"a," + (b'"' + b"A" * 9 + b'\n",') * (1 << 19),
    ],
    ids=["one long line", "a quote that stays open", "many cells of two lines"],
)
def test_endless_row_of_a_table_ends_with_its_limit(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(b"id,sequence\n" + text)
    with pytest.raises(fasta_problems.FastaError, match=r":2: .* over 4 MiB of text"):
        list(fasta.blocks(path))


@pytest.mark.usefixtures("limit")
def test_endless_comments_end_with_their_limit(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(b";" + b"A" * (9 << 20))
    with pytest.raises(fasta_problems.FastaError, match="no '>' header in the first 4"):
        list(fasta.blocks(path))
