"""Keys under which proteins are stored; escaped so that a key is never a path."""

import re

from prottrans_jax.files import digests

SCHEMES = ("auto", "token", "header", "md5", "biotrainer", "index")
# A key is the name of an HDF5 dataset or a zip member, which have limits.
MAX_HEADER_CHARS = 4096
_UNIPROT = re.compile(r"(?:sp|tr)\|([^|\s]+)\|")


def make(scheme: str, name: str, header: str, residues: bytes, index: int) -> str:
    """Key of a protein.

    Args:
      scheme: "auto": the accession of a UniProt header (sp|ACC|NAME, tr|ACC|NAME),
        else the first word; "token": the first word; "header": the whole line; "md5":
        MD5 of the residues, as in bio_embeddings; "biotrainer": SHA-256 of residues,
        "_" and length, as in biotrainer; "index": index in the input, from 0.
      name: First word of the header.
      header: The whole header.
      residues: Upper-case residues.
      index: Index of the record.

    Returns:
      The key, made safe by `escape`.

    Raises:
      ValueError: `scheme` is unknown, or a header is too long to be a key.
    """
    if scheme == "auto":
        match = _UNIPROT.match(name)
        return escape(match[1] if match else name)
    if scheme == "token":
        return escape(name)
    if scheme == "header":
        if len(header) > MAX_HEADER_CHARS:
            raise ValueError(
                f"{name!r}: its header has {len(header):,} characters; as a key the "
                f"limit is {MAX_HEADER_CHARS:,}. Choose --key token or auto."
            )
        return escape(header.strip())
    if scheme == "md5":
        return digests.md5(residues)
    if scheme == "biotrainer":
        return digests.of_bytes(residues + b"_%d" % len(residues))
    if scheme == "index":
        return str(index)
    raise ValueError(
        f"key={scheme!r} is not known. Choose one of {', '.join(SCHEMES)}."
    )


def candidates(key: str, name: str, header: str, residues: bytes) -> list[str]:
    """Keys under which another file may hold a protein, the most likely first."""
    names = [key, make("auto", name, header, residues, 0), header.strip(), name]
    names += [make(s, name, header, residues, 0) for s in ("header", "token", "md5")]
    return list(dict.fromkeys(names))


def escape(name: str) -> str:
    """Percent-encodes characters that are special to HDF5 or a file system.

    `/` would make a group, NUL ends a name, "." and ".." are not valid names. `%` is
    encoded too, or two ids could get the same key.
    """
    name = name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
    name = name.replace("\0", "%00")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if name.endswith("."):
        name = name[:-1] + "%2E"
    return name


def safe(key: str) -> str:
    """A key of a file that others may have made: as it is, or escaped if a path."""
    # `%` alone is not dangerous, and keys of our own files hold it.
    return key if escape(key.replace("%", "")) == key.replace("%", "") else escape(key)


def digest(residues: bytes) -> str:
    """SHA-256 of a sequence, to detect changed sequences."""
    return digests.of_bytes(residues)
