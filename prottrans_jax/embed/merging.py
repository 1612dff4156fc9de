"""Shards and vectors that existed before, in the input's order, into the output."""

from collections.abc import Iterator
import os

from jaxtyping import Int, UInt8
import numpy as np

from prottrans_jax.embed import (
    computing,
    inputs,
    keys,
    provenance,
    reuse,
    settings,
    shards,
    writers,
)
from prottrans_jax.files import writing


def merge(
    asked: settings.Settings,
    found: inputs.Inputs,
    entries: UInt8[np.ndarray, "records 32"],
    known: reuse.Known,
    parts: shards.Parts,
    kept: int,
) -> None:
    """Writes the outputs; killed at any moment, the next run does it again.

    Args:
      asked: What was computed.
      found: The input.
      entries: Hashes under which the records are kept.
      known: Vectors that need not be in the shards.
      parts: The shards.
      kept: Number of proteins of the output as it is that are not in the input.
    """
    places = parts.find(entries)
    metadata = provenance.attributes(asked, len(found.chosen) + kept)
    # Before the outputs: those left behind by a kill are then recognisable.
    provenance.write(asked, found, kept=kept, complete=False)
    for kind, path in asked.paths.items():
        temporary = parts.folder / f"merged.{kind}{path.suffix}"
        try:
            writer = writers.create(temporary, metadata[kind])
            try:
                for entry in _entries(kind, asked, found, places, known, parts):
                    writer.add(entry)
                for entry in known.others(kind, entries):
                    writer.add(entry)
            finally:
                writer.close()
            if path.is_dir():
                # A folder cannot be replaced at once; see `shards.Parts`.
                os.replace(path, parts.folder / f"before.{kind}")
            os.replace(temporary, path)
        finally:
            # After a failure it takes the room that a full disk lacks.
            writing.remove(temporary)
    writing.sync_folder(asked.output.parent)
    provenance.write(asked, found, kept=kept, complete=True)


def _entries(
    kind: str,
    asked: settings.Settings,
    found: inputs.Inputs,
    places: Int[np.ndarray, "records 2"],
    known: reuse.Known,
    parts: shards.Parts,
) -> Iterator[writers.Entry]:
    """The input's proteins with their vectors, from the shards or known before."""
    for protein in found.proteins():
        place = places[protein.number]
        if place[0] >= 0:
            array = parts.arrays(place, kind)
            array = array.reshape((*asked.shape[:-1], -1, asked.shape[-1]))
            if kind == "protein":
                array = array[..., 0, :]
        else:
            array = computing.to_stored(
                known.array(protein, kind), asked.dtypes[kind], protein.name
            )
        yield _entry(asked, protein, array)


def _entry(
    asked: settings.Settings, protein: inputs.Protein, array: np.ndarray
) -> writers.Entry:
    full = len(protein.residues)
    return writers.Entry(
        protein.key,
        protein.name,
        protein.description,
        int(asked.stored_lengths(np.array([full]))[0]),
        keys.digest(protein.residues),
        array,
        sequence_length=full,
    )
