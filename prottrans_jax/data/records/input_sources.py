"""Inputs of `prepare`: FASTA files, or pairs of id and sequence."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from prottrans_jax.files import digests, folders
from prottrans_jax.proteins import fasta, fasta_blocks, unpacking

# Approximate bytes of text per compressed byte of protein FASTA.
_UNPACKED = 2.2


@dataclasses.dataclass(frozen=True)
class Source:
    """One input: its path, a function that reads its blocks, and its split."""

    path: str
    # Arguments: a hash object, updated with all bytes that are read, and the size of a
    # block in bytes.
    blocks: Callable[[Any, int], Iterable[fasta_blocks.Block]]
    num_bytes: int | None = None
    split: str | None = None


def of_fasta(path: str, split: str | None = None) -> Source:
    """A FASTA file as a source; "-" is standard input.

    Raises:
      ValueError: there is no such file.
    """
    num_bytes = None
    if path != "-":
        try:
            with folders.opened(path) or pathlib.Path(path).open("rb") as f:
                packed = unpacking.is_compressed(f.read(unpacking.MAGIC_BYTES))
                size = f.seek(0, os.SEEK_END)
        except OSError as e:
            raise ValueError(f"{path}: cannot be read: {e.strerror}.") from e
        num_bytes = int(size * (_UNPACKED if packed else 1))
    return Source(
        path=path,
        blocks=lambda digest, size: fasta.blocks(
            path, digest=digest, block_bytes=size, stream=folders.opened(path)
        ),
        num_bytes=num_bytes,
        split=split,
    )


def of_examples(
    path: str, examples: Iterable[tuple[str, bytes]], split: str | None = None
) -> Source:
    """(id, sequence) pairs as a source; checked like FASTA with two lines each."""

    def blocks(digest: digests.Sha256, _: int) -> Iterator[fasta_blocks.Block]:
        line = 1
        iterator = iter(examples)
        while some := list(itertools.islice(iterator, 8192)):
            text = b"".join(
                # White space would end the id, and a line break could start a record.
                b">%b\n%b\n" % ("_".join(name.split()).encode(), b"".join(s.split()))
                for name, s in some
            )
            digest.update(text)
            yield fasta_blocks.Block(path, line, text, first=line == 1)
            line += 2 * len(some)

    return Source(path=path, blocks=blocks, split=split)


def total_bytes(sources: Iterable[Source]) -> int | None:
    """Approximate text of all inputs in bytes; None if one is unknown."""
    sizes = [s.num_bytes for s in sources]
    return None if None in sizes else sum(s or 0 for s in sizes)
