"""Proteins that are in two splits, by id or by sequence.

Only identical sequences are found. Similar ones must be separated before the splits are
made, e.g. with MMseqs2.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Literal

from prottrans_jax.downstream import labelled
from prottrans_jax.proteins import plurals

# Rule -> what becomes of proteins that are in two splits.
RULES = {
    "refuse": "an error that names the first pair",
    "report": "kept, and counted in the notes",
    "drop": "those of the split that is trained on are left out",
}
# Of two splits, a protein is dropped from the first of these; else from the former.
_TRAINED_ON = ("train", "val", "valid", "validation")
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Leak:
    """Two proteins of different splits.

    Attributes:
      kind: What they have in common.
      first: The one that comes first in the set.
      second: The other.
    """

    kind: Literal["id", "sequence", "id and sequence"]
    first: labelled.LabelledProtein
    second: labelled.LabelledProtein

    def __str__(self) -> str:
        first, second = self.first, self.second
        return (
            f"{first.id} ({first.split}, {first.place}) and {second.id} "
            f"({second.split}, {second.place}) have the same {self.kind}"
        )


def find(proteins: labelled.LabelledSet) -> list[Leak]:
    """Each protein with the first one of every other split that equals it."""
    pairs: dict[tuple[int, int], set[str]] = {}
    keys: tuple[tuple[str, Callable[[labelled.LabelledProtein], str]], ...] = (
        ("id", lambda protein: protein.id),
        ("sequence", lambda protein: protein.residues),
    )
    for kind, key in keys:
        for pair in _pairs(proteins.proteins, key):
            pairs.setdefault(pair, set()).add(kind)
    return [
        Leak(
            " and ".join(sorted(kinds)),  # type: ignore[arg-type]
            proteins.proteins[first],
            proteins.proteins[second],
        )
        for (first, second), kinds in sorted(pairs.items())
    ]


def check(proteins: labelled.LabelledSet, rule: str = "refuse") -> labelled.LabelledSet:
    """The set after a rule about proteins that are in two splits.

    Args:
      proteins: The set, of all its splits; `labelled.joined` joins several files.
      rule: A key of `RULES`.

    Raises:
      ValueError: The rule is "refuse" and a protein is in two splits; or it is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r}; rules: {', '.join(RULES)}.")
    leaks = find(proteins)
    if not leaks:
        return proteins
    pairs = plurals.count(len(leaks), "pair")
    if rule == "refuse":
        raise ValueError(
            f"{leaks[0]}; {pairs} of proteins in two splits. Choose the rule drop or "
            "report if that is intended."
        )
    shown = "; ".join(map(str, leaks[:_SHOWN])) + ("; ..." if leaks[_SHOWN:] else "")
    if rule == "report":
        note = f"{pairs} of proteins in two splits: {shown}"
        return dataclasses.replace(proteins, notes=(*proteins.notes, note))
    dropped = {id(_trained_on(leak)) for leak in leaks}
    kept = [protein for protein in proteins.proteins if id(protein) not in dropped]
    lost = plurals.count(len(dropped), "protein")
    note = f"{lost} left out, because they are in a second split (drop): {shown}"
    return dataclasses.replace(proteins, proteins=kept, notes=(*proteins.notes, note))


def _pairs(
    proteins: Sequence[labelled.LabelledProtein],
    key: Callable[[labelled.LabelledProtein], str],
) -> Iterator[tuple[int, int]]:
    """Indices of pairs that have the same key in different splits."""
    seen: dict[str, dict[str, int]] = {}
    for index, protein in enumerate(proteins):
        splits = seen.setdefault(key(protein), {})
        for split, other in splits.items():
            if split != protein.split:
                yield other, index
        splits.setdefault(protein.split, index)


def _trained_on(leak: Leak) -> labelled.LabelledProtein:
    for split in _TRAINED_ON:
        for protein in (leak.first, leak.second):
            if protein.split == split:
                return protein
    return leak.first
