"""Evaluations with published results: files, splits, head and metric of each.

Two collections: the tables of the ProtTrans paper (Elnaggar et al. 2021), and the seven
supervised data sets of the PBC, with the heads and settings of biotrainer 2.1.1's
AutoEval. A further evaluation is an entry of `_ALL`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import fnmatch

from prottrans_jax.files import paths


@dataclasses.dataclass(frozen=True)
class Part:
    """Labelled proteins of one role: training, validation or one test set.

    Attributes:
      patterns: Glob patterns of the file's name, upper or lower case, by precedence;
        the file is searched in the data folder and the folders below it.
      splits: Splits of the file that belong to the part; empty: all proteins of it.
      mask: Rule for the residues that count; see `readers.read`.
    """

    patterns: tuple[str, ...]
    splits: tuple[str, ...] = ()
    mask: str = "resolved"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One row or more of a table: a head is trained once and tested on each set.

    Attributes:
      name: Name on the command line.
      title: Name in the table, e.g. "Q3".
      collection: "paper" or "pbc".
      task: Name of a published task; None: derived from the labels of the file.
      head: Name of the head; see `heads`.
      train: Where the training proteins are.
      validation: Where the proteins are that choose the epoch.
      tests: Name of a test set -> where it is. Empty: all other splits of the file.
      metrics: Names of metrics, the main one first; see `prediction_metrics.METRICS`.
      description: What is measured, for the head of the table.
    """

    name: str
    title: str
    collection: str
    task: str | None
    head: str
    train: Part
    validation: Part
    tests: Mapping[str, Part]
    metrics: tuple[str, ...]
    description: str


_STRUCTURE_TRAIN = ("netsurfp2_train*", "Train_HHblits*", "train*hhblits*")
_STRUCTURE_VAL = ("netsurfp2_val*", "Validation_HHblits*", "validation*hhblits*")
_STRUCTURE_TESTS = {
    "CASP12": Part(("casp12*",)),
    "TS115": Part(("ts115*",)),
    # As published: the residues of the CB513 domains.
    "CB513": Part(("cb513*",), mask="cb513"),
    "NEW364": Part(("new364*", "newpisces364*")),
    # Its loss also chooses the epoch, so its figures are optimistic.
    "validation": Part(_STRUCTURE_VAL),
}
_DEEPLOC_TRAIN = Part(("deeploc_train.*", "deeploc_our_train_set*"))
_DEEPLOC_VAL = Part(("deeploc_val.*", "deeploc_our_val_set*"))
_DEEPLOC_TEST = Part(("deeploc_test.*", "deeploc_test_set*"))
_HARD = Part(("setHARD*", "deeploc_hard*"))


def _pbc(
    name: str,
    file: str,
    task: str | None,
    metrics: tuple[str, ...],
    title: str,
    head: str = "cnn",
) -> Evaluation:
    files = (f"{file}.fasta", f"{file}.fasta.gz")
    return Evaluation(
        name=f"pbc_{name}",
        title=title,
        collection="pbc",
        task=task,
        head=head,
        train=Part(files, ("train",)),
        validation=Part(files, ("val",)),
        tests={},
        metrics=metrics,
        description=f"PBC, {file}.fasta",
    )


_ALL = (
    Evaluation(
        name="q3",
        title="Q3",
        collection="paper",
        task="secondary_structure_3",
        head="cnn",
        train=Part(_STRUCTURE_TRAIN),
        validation=Part(_STRUCTURE_VAL),
        tests=_STRUCTURE_TESTS,
        metrics=("accuracy", "macro_f1"),
        description="secondary structure in 3 states, share of resolved residues",
    ),
    Evaluation(
        name="q8",
        title="Q8",
        collection="paper",
        task="secondary_structure_8",
        head="cnn",
        train=Part(_STRUCTURE_TRAIN),
        validation=Part(_STRUCTURE_VAL),
        tests=_STRUCTURE_TESTS,
        metrics=("accuracy", "macro_f1"),
        description="secondary structure in 8 states, share of resolved residues",
    ),
    Evaluation(
        name="q10",
        title="Q10",
        collection="paper",
        task="location",
        head="fnn",
        train=_DEEPLOC_TRAIN,
        validation=_DEEPLOC_VAL,
        tests={"DeepLoc": _DEEPLOC_TEST, "setHARD": _HARD},
        metrics=("accuracy", "mcc", "balanced_accuracy"),
        description="location in the cell, 10 classes, share of proteins",
    ),
    Evaluation(
        name="q2",
        title="Q2",
        collection="paper",
        task="membrane",
        head="fnn",
        train=_DEEPLOC_TRAIN,
        validation=_DEEPLOC_VAL,
        tests={"DeepLoc": _DEEPLOC_TEST},
        metrics=("accuracy", "mcc"),
        description="membrane-bound or soluble, share of proteins with a known class",
    ),
    _pbc(
        "conservation",
        "conservation",
        "conservation",
        ("accuracy", "mcc"),
        "conservation",
    ),
    _pbc(
        "disorder",
        "disorder_chezod",
        "disorder_chezod",
        ("spearman",),
        "disorder (CheZOD)",
    ),
    _pbc(
        "secondary_structure",
        "secondary_structure",
        "secondary_structure_3",
        ("accuracy", "macro_f1"),
        "secondary structure",
    ),
    _pbc(
        "scl",
        "scl",
        "location",
        ("balanced_accuracy", "accuracy"),
        "location",
        head="fnn",
    ),
    _pbc(
        "frustration_classes",
        "frustration_classification",
        None,
        ("macro_f1", "accuracy"),
        "frustration, classes",
    ),
    _pbc(
        "frustration",
        "frustration_regression",
        None,
        ("spearman",),
        "frustration",
    ),
    _pbc("phages", "phages", None, ("accuracy",), "phages", head="fnn"),
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in _ALL}


def choose(names: Sequence[str]) -> list[Evaluation]:
    """Evaluations with these names; "paper" and "pbc" stand for a collection.

    Raises:
      ValueError: There is no such evaluation; lists those that there are.
    """
    chosen: dict[str, Evaluation] = {}
    for name in names:
        members = [e for e in _ALL if name in (e.name, e.collection)]
        if not members:
            near = difflib.get_close_matches(name, EVALUATIONS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"there is no evaluation {name!r}; evaluations: paper, pbc, "
                f"{', '.join(EVALUATIONS)}.{hint}"
            )
        chosen |= {e.name: e for e in members}
    return list(chosen.values())


def find(folder: paths.Place, part: Part) -> paths.Place | None:
    """The file of a part in a folder or below it, or None.

    Args:
      folder: The data folder.
      part: The part; the first pattern that a file matches decides.

    Raises:
      ValueError: Several files match the same pattern.
    """
    files = sorted(x for x in folder.rglob("*") if x.is_file())
    for pattern in part.patterns:
        matches = [x for x in files if fnmatch.fnmatch(x.name.lower(), pattern.lower())]
        if len(matches) > 1:
            raise ValueError(
                f"several files match {pattern}: {', '.join(map(str, matches))}. Keep "
                "one of them below the data folder."
            )
        if matches:
            return matches[0]
    return None
