"""FLIP's sets of residues: a folder of FASTA files that share their ids.

  sequences.fasta   residues
  sampled.fasta     labels, with SET= and VALIDATION= in the headers; the file may have
                    the name of another split, such as human.fasta
  mask.fasta        1: the label counts, 0: not (also resolved.fasta); optional

Dallago et al. 2021, splits/secondary_structure and splits/conservation.
"""

from collections.abc import Sequence

from prottrans_jax.downstream.readers import labelled_fasta, records, text_files
from prottrans_jax.files import paths
from prottrans_jax.proteins import plurals

_SEQUENCES = "sequences.fasta"
_MASKS = ("mask.fasta", "resolved.fasta")
_SUFFIXES = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".zip")


def read(folder: paths.Place) -> records.Contents:
    """Reads such a folder.

    Raises:
      ValueError: A file is missing, there are labels of several splits, or a protein
        lacks its sequence or mask.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    fasta = {_plain(name): name for name in names if _plain(name).endswith(".fasta")}
    if _SEQUENCES not in fasta:
        raise ValueError(
            f"{folder}: a folder of labels must hold {_SEQUENCES}, as FLIP's do; it "
            f"holds {', '.join(names) or 'no files'}."
        )
    labels = [name for name in fasta if name not in (_SEQUENCES, *_MASKS)]
    if len(labels) != 1:
        raise ValueError(
            f"{folder}: {len(labels)} FASTA files of labels beside {_SEQUENCES}"
            f"{' (' + ', '.join(labels) + ')' if labels else ''}; one is needed. "
            "Make a folder for each."
        )
    sequences = _bodies(folder / fasta[_SEQUENCES])
    mask_file = next((fasta[name] for name in _MASKS if name in fasta), None)
    masks = _bodies(folder / mask_file) if mask_file else {}
    place = folder / fasta[labels[0]]
    found: list[records.Record] = []
    columns: dict[str, None] = {}
    for entry in labelled_fasta.entries(str(place), text_files.lines(place)):
        identifier, _, description = entry.header.partition(" ")
        fields = {"target": entry.body, **labelled_fasta.attributes(description)}
        where = f"{place}:{entry.line}"
        for file, bodies in ((fasta[_SEQUENCES], sequences), (mask_file, masks)):
            if file and identifier not in bodies:
                raise ValueError(f"{where}: record {identifier!r} is not in {file}.")
        if mask_file:
            fields["mask"] = masks[identifier]
        columns.update(dict.fromkeys(fields))
        found.append(records.Record(identifier, sequences[identifier], fields, where))
    notes: Sequence[str] = ()
    labelled = {record.id for record in found}
    unlabelled = [identifier for identifier in sequences if identifier not in labelled]
    if unlabelled:
        named = plurals.count(len(unlabelled), "protein")
        notes = (
            f"{named} of {fasta[_SEQUENCES]} without a label left out, the first: "
            f"{unlabelled[0]!r}",
        )
    return records.Contents("flip", tuple(found), tuple(columns), tuple(notes))


def _plain(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _bodies(place: paths.Place) -> dict[str, str]:
    bodies: dict[str, str] = {}
    for entry in labelled_fasta.entries(str(place), text_files.lines(place)):
        identifier = entry.header.split(None, 1)[0]
        if identifier in bodies:
            raise ValueError(
                f"{place}:{entry.line}: the id {identifier!r} is repeated."
            )
        bodies[identifier] = entry.body
    return bodies
