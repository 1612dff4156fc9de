"""Kinds of files without sequences, recognised by their first bytes."""

# Bytes that are needed: the mark of a tar archive is at 257.
START_BYTES = 512

_UNPACK = "Unpack it and give the file of sequences inside."
_EXPORT = "Save or export the sequences as FASTA."
_NOT_HERE = "Give the FASTA file that belongs to it."
# (first bytes, kind of file, advice)
_MAGIC = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x1f\x9d", "compressed by `compress` (.Z)", _UNPACK),
    (b"LZIP", "compressed by lzip", _UNPACK),
    (b"\x89LZO", "compressed by lzop", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with Snappy", _UNPACK),
    (b"\x02\x21\x4c\x18", "compressed with LZ4 in its old format", _UNPACK),
    (b"%PDF", "a PDF document", _EXPORT),
    (b"{\\rtf", "an RTF document", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document (.doc, .xls)", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _NOT_HERE),
    (b"\x93NUMPY", "a NumPy array", _NOT_HERE),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"\x80\x02", "a Python pickle", _EXPORT),
    (b"\x80\x03", "a Python pickle", _EXPORT),
    (b"\x80\x04", "a Python pickle", _EXPORT),
    (b"\x80\x05", "a Python pickle", _EXPORT),
    (b"\x89PNG", "an image", _NOT_HERE),
    (b"\xff\xd8\xff", "an image", _NOT_HERE),
    (b"GIF8", "an image", _NOT_HERE),
    (b"\x7fELF", "a program", _NOT_HERE),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself",
        "Fetch it with `git lfs pull`.",
    ),
    (b"LOCUS  ", "a GenBank file", "Convert it to FASTA."),
    (b"ID   ", "a flat file of UniProt or EMBL", "Download it as FASTA."),
    (b"# STOCKHOLM", "an alignment in Stockholm format", "Convert it to FASTA."),
    (b"CLUSTAL", "an alignment in Clustal format", "Convert it to FASTA."),
    (b"HEADER   ", "a PDB file of a structure", "Download its FASTA."),
    (b"ATOM  ", "a PDB file of a structure", "Download its FASTA."),
    (b"data_", "an mmCIF file of a structure", "Download its FASTA."),
    (b"##gff-version", "a GFF file of annotations", _NOT_HERE),
    (b"##fileformat=VCF", "a VCF file of variants", _NOT_HERE),
)
# Compressed formats that may be inside a compressed file.
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"PK\x03\x04", "zip"),
)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def describe(start: bytes) -> str | None:
    """Kind of a file and advice, if its first bytes show that it holds no sequences.

    Args:
      start: The first `START_BYTES` (or all, if there are fewer) of the decompressed
        text with LF line ends.
    """
    for magic, kind, advice in _MAGIC:
        if start.startswith(magic):
            return f"this is {kind}. {advice}"
    for magic, kind in _PACKED:
        if start.startswith(magic):
            return f"this is compressed twice, inside with {kind}. Unpack it once."
    if start.startswith(_UTF16):
        return (
            "this is text in UTF-16. Convert it, e.g. with `iconv -f utf-16 -t utf8`."
        )
    if start[257:262] == b"ustar":
        return f"this is a tar archive. {_UNPACK}"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "this is a web page, not a file of sequences. Check the link."
    if text.startswith(b"<?xml"):
        return f"this is XML. {_EXPORT}"
    if text.startswith((b"{", b"[")):
        return f"this is JSON. {_EXPORT}"
    if _is_fastq(start):
        return "this is FASTQ: reads of nucleotides. Translate them to proteins."
    return None


def _is_fastq(start: bytes) -> bool:
    lines = start.replace(b"\r\n", b"\n").split(b"\n")
    return start.startswith(b"@") and len(lines) > 2 and lines[2].startswith(b"+")
