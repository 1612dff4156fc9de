"""Published tasks by name, with the classes in the order of their source.

A new task is an entry of `TASKS`. `readers.read` finds the labels in the column that
has one of the names in `columns`, or else in one named label or target.
"""

from collections.abc import Mapping
import dataclasses
import difflib

from prottrans_jax.downstream import labelled

_PROT_TRANS = "Elnaggar et al. 2021 (ProtTrans)"
_NETSURFP = "NetSurfP-2.0 (Klausen et al. 2019), DSSP (Kabsch & Sander 1983)"
_DEEPLOC = "DeepLoc 1.0 (Almagro Armenteros et al. 2017)"
_ORDER = "order of the heads of ProtTrans (bio_embeddings)"


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A task, and how files write its labels.

    Attributes:
      task: The task.
      columns: Names of the columns with its labels, by precedence.
      aliases: Other spelling of a class in a file -> the class.
      unknown: Labels that name no class of the task; see `readers.read`.
      missing: The number that stands for a missing one.
      uses_mask: Whether unresolved residues are excluded; not if they are the label.
    """

    task: labelled.Task
    columns: tuple[str, ...]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    missing: float | None = None
    uses_mask: bool = True


# DSSP writes coil as a blank, others as "-" or "L".
_COIL = {"-": "C", "L": "C"}
_LOCATIONS = (
    *("Cell.membrane", "Cytoplasm", "Endoplasmic.reticulum", "Golgi.apparatus"),
    *("Lysosome/Vacuole", "Mitochondrion", "Nucleus", "Peroxisome", "Plastid"),
    "Extracellular",
)

_ALL = (
    PublishedTask(
        labelled.Task(
            "secondary_structure_3",
            "residue",
            ("H", "E", "C"),
            "accuracy",
            f"{_NETSURFP}; {_ORDER}. FLIP's own order is C, E, H",
        ),
        columns=("q3", "dssp3"),
        aliases=_COIL,
    ),
    PublishedTask(
        labelled.Task(
            "secondary_structure_8",
            "residue",
            ("G", "H", "I", "B", "E", "S", "T", "C"),
            "accuracy",
            f"{_NETSURFP}; {_ORDER}",
        ),
        columns=("q8", "dssp8"),
        aliases=_COIL,
    ),
    PublishedTask(
        labelled.Task(
            "disorder",
            "residue",
            ("ordered", "disordered"),
            "mcc",
            f"{_NETSURFP}: disordered is unresolved in the structure; "
            "class order: ours",
        ),
        # NetSurfP's column has 1 for ordered residues; so has a mask.
        columns=("disorder", "mask"),
        aliases={"1": "ordered", "0": "disordered", "1.0": "ordered"}
        | {"0.0": "disordered", "-": "ordered", "X": "disordered"},
        uses_mask=False,
    ),
    PublishedTask(
        labelled.Task(
            "disorder_chezod",
            "residue",
            (),
            "spearman",
            "CheZOD scores (Nielsen & Mulder 2019), sets of SETH (Ilzhoefer et al. "
            "2022): below 8 is disordered",
        ),
        columns=("chezod", "disorder chezod"),
        missing=999.0,
    ),
    PublishedTask(
        labelled.Task(
            "conservation",
            "residue",
            tuple("123456789"),
            "accuracy",
            "ConSurf-DB's nine grades, 9 most conserved (Marquet et al. 2021, FLIP)",
        ),
        columns=("conservation",),
    ),
    PublishedTask(
        labelled.Task(
            "location",
            "protein",
            _LOCATIONS,
            "accuracy",
            f"{_DEEPLOC}, ten classes; {_PROT_TRANS}; {_ORDER}",
        ),
        columns=("location", "loc"),
        aliases={
            name.replace(".", separator): name
            for name in _LOCATIONS
            for separator in " _-"
            if "." in name
        },
        # 146 of the 14,004 proteins; the ten classes of the paper are without them.
        unknown=("Cytoplasm-Nucleus",),
    ),
    PublishedTask(
        labelled.Task(
            "membrane",
            "protein",
            ("soluble", "membrane"),
            "accuracy",
            f"{_DEEPLOC}, membrane-bound or water-soluble; {_PROT_TRANS}; {_ORDER}",
        ),
        columns=("membrane",),
        aliases={"S": "soluble", "M": "membrane"},
        # 1,022 of the 2,768 test proteins.
        unknown=("U", "?"),
    ),
    PublishedTask(
        labelled.Task(
            "gb1",
            "protein",
            (),
            "spearman",
            "Fitness of variants of GB1 (Wu et al. 2016), splits of FLIP (Dallago et "
            "al. 2021)",
        ),
        columns=("gb1",),
    ),
)
TASKS = {published.task.name: published for published in _ALL}


def get(name: str) -> PublishedTask:
    """The task with a name.

    Raises:
      ValueError: There is none; lists those that there are, the nearest first.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.4)
    rest = [other for other in TASKS if other not in near]
    raise ValueError(
        f"there is no published task {name!r}. Those that there are: "
        f"{', '.join([*near, *rest])}."
    )
