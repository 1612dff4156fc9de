"""Writes the output from shards and reused vectors, in the order of the input."""

from collections.abc import Iterator

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
    job_settings: settings.Settings,
    records: inputs.Inputs,
    entries: UInt8[np.ndarray, "records 32"],
    reusable: reuse.Reusable,
    parts: shards.Parts,
    kept: int,
) -> None:
    """Writes the outputs; if killed at any moment, the next run repeats it.

    Args:
      job_settings: Resolved settings of the job.
      records: Records of the input.
      entries: Hashes by which shards identify the records.
      reusable: Vectors from the existing output or other files.
      parts: The shards.
      kept: Number of proteins of the existing output that are not in the input.
    """
    places = parts.find(entries)
    metadata = provenance.attributes(job_settings, len(records.chosen) + kept)
    # Written first, so that outputs left behind by a kill are recognisable.
    provenance.write(job_settings, records, kept=kept, complete=False)
    for kind, path in job_settings.paths.items():
        temporary = parts.work / f"merged.{kind}{path.suffix}"
        try:
            writer = writers.create(temporary, metadata[kind])
            try:
                for entry in _entries(
                    kind, job_settings, records, places, reusable, parts
                ):
                    writer.add(entry)
                for entry in reusable.others(kind, entries):
                    writer.add(entry)
            finally:
                writer.close()
            parts.publish(temporary, path, kind)
        finally:
            # After a failure it would occupy space on a full disk.
            writing.remove(temporary)
    provenance.write(job_settings, records, kept=kept, complete=True)


def _entries(
    kind: str,
    job_settings: settings.Settings,
    records: inputs.Inputs,
    places: Int[np.ndarray, "records 2"],
    reusable: reuse.Reusable,
    parts: shards.Parts,
) -> Iterator[writers.Entry]:
    """Proteins of the input with their vectors, from shards or reusable files."""
    for protein in records.proteins():
        place = places[protein.number]
        if place[0] >= 0:
            array = parts.arrays(place, kind)
            array = array.reshape(
                (*job_settings.shape[:-1], -1, job_settings.shape[-1])
            )
            if kind == "protein":
                array = array[..., 0, :]
        else:
            array = computing.to_stored(
                reusable.array(protein, kind), job_settings.dtypes[kind], protein.name
            )
        yield _entry(job_settings, protein, array)


def _entry(
    job_settings: settings.Settings, protein: inputs.Protein, array: np.ndarray
) -> writers.Entry:
    full = len(protein.residues)
    return writers.Entry(
        protein.key,
        protein.name,
        protein.description,
        int(job_settings.stored_lengths(np.array([full]))[0]),
        keys.digest(protein.residues),
        array,
        sequence_length=full,
    )
