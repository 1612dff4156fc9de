"""FASTA from streams that give few bytes at a time, as pipes do."""

import io

from prottrans_jax.proteins import fasta, fasta_blocks


class ShortReads(io.RawIOBase):
    """Gives at most `size` bytes a read."""

    def __init__(self, data, size):
        self._data, self._size = io.BytesIO(data), size

    def read(self, size=-1):
        del size
        return self._data.read(self._size)


def read(data, size, block_bytes=fasta.BLOCK_BYTES):
    """[(name, residues, line)] and problems of a file, read `size` bytes at a time."""
    records, problems = [], []
    stream = ShortReads(data, size)
    for block in fasta.blocks("x.fasta", stream=stream, block_bytes=block_bytes):
        parsed = fasta_blocks.parse(block)
        records += zip(parsed.names, parsed.residues, parsed.lines, strict=True)
        problems += [*block.problems, *parsed.problems]
    return records, problems
