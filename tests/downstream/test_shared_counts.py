"""Counts of real labelled files are those that their README states."""

import collections

import pytest

from prottrans_jax.downstream import labelled, readers

Q3 = "secondary_structure_3"
Q8 = "secondary_structure_8"
_LOCATIONS = (
    *("Cell.membrane", "Cytoplasm", "Endoplasmic.reticulum", "Golgi.apparatus"),
    *("Lysosome/Vacuole", "Mitochondrion", "Nucleus", "Peroxisome", "Plastid"),
    "Extracellular",
)


def _by_class(names, *counts):
    return dict(zip(names, counts, strict=True))


# File, task, options; then what README.md of the data states: proteins, those that have
# a label, splits, labels that count by class (None: a regression).
TABLE = [
    (
        ("secstruct/netsurfp2_train.q3.jsonl.gz", Q3, {}),
        (9712, {"train": 9712}, _by_class("HEC", 897340, 526995, 895628)),
    ),
    (
        ("secstruct/netsurfp2_train.q3.jsonl.gz", Q3, {"mask": "none"}),
        (9712, {"train": 9712}, _by_class("HEC", 897340, 526995, 1055438)),
    ),
    (
        ("secstruct/netsurfp2_train.q3.jsonl.gz", "disorder", {}),
        (9712, {"train": 9712}, {"ordered": 2319963, "disordered": 159810}),
    ),
    (
        ("secstruct/netsurfp2_val.q3.jsonl.gz", Q3, {}),
        (1080, {"val": 1080}, _by_class("HEC", 103906, 58608, 100339)),
    ),
    (
        ("secstruct/casp12.jsonl", Q3, {}),
        (20, {"casp12": 20}, _by_class("HEC", 2145, 1350, 2509)),
    ),
    (
        ("secstruct/casp12.jsonl", Q8, {}),
        (
            20,
            {"casp12": 20},
            _by_class("GHIBESTC", 203, 1905, 37, 56, 1294, 629, 595, 1285),
        ),
    ),
    (
        ("secstruct/cb513.jsonl.gz", Q3, {}),
        (511, {"cb513": 511}, _by_class("HEC", 49006, 31921, 59559)),
    ),
    (
        ("secstruct/cb513.jsonl.gz", Q8, {}),
        (
            511,
            {"cb513": 511},
            _by_class("GHIBESTC", 5173, 43037, 796, 1831, 30090, 13541, 16457, 29561),
        ),
    ),
    (
        ("deeploc/deeploc_train.tsv.gz", "location", {}),
        (
            8764 - 116,
            {"train": 8764 - 116},
            _by_class(_LOCATIONS, 838, 1637, 574, 222, 205, 980, 2527, 88, 425, 1152),
        ),
    ),
    (
        ("deeploc/deeploc_train.tsv.gz", "membrane", {}),
        (
            2789 + 838,
            {"train": 2789 + 838},
            {"soluble": 2789, "membrane": 838},
        ),
    ),
    (
        ("deeploc/deeploc_val.tsv.gz", "location", {}),
        (
            1678 - 23,
            {"val": 1678 - 23},
            _by_class(_LOCATIONS, 161, 276, 95, 48, 42, 200, 476, 23, 91, 243),
        ),
    ),
    (
        ("deeploc/deeploc_val.tsv.gz", "membrane", {"unknown": "keep"}),
        (1678, {"val": 1678}, {"soluble": 595, "membrane": 426}),
    ),
    (
        ("deeploc/deeploc_test.tsv.gz", "location", {}),
        (
            2768,
            {"test": 2768},
            _by_class(_LOCATIONS, 273, 505, 173, 70, 64, 302, 806, 30, 152, 393),
        ),
    ),
    (
        ("deeploc/deeploc_test.tsv.gz", "membrane", {}),
        (1746, {"test": 1746}, {"soluble": 1003, "membrane": 743}),
    ),
    (
        ("deeploc/deeploc_test.tsv.gz", "membrane", {"unknown": "soluble"}),
        (2768, {"test": 2768}, {"soluble": 1003 + 1022, "membrane": 743}),
    ),
    (
        ("disorder/chezod_train_val.jsonl.gz", "disorder_chezod", {}),
        (1168, {"train": 1050, "val": 118}, 131713),
    ),
    (
        ("conservation/flip_conservation.jsonl.gz", "conservation", {}),
        (
            10466,
            {"train": 9392, "val": 555, "test": 519},
            _by_class(
                "123456789",
                *(353156, 181968, 232724, 278481, 320637),
                *(377287, 357174, 302667, 311720),
            ),
        ),
    ),
    (
        ("gb1/gb1_low_vs_high.csv.gz", "gb1", {}),
        (8733, {"train": 4580, "val": 509, "test": 3644}, 8733),
    ),
]


@pytest.mark.parametrize(
    ("source", "stated"), TABLE, ids=lambda x: str(x[1]) if len(x) == 3 else ""
)
def test_counts_are_those_of_the_readme(shared, source, stated):
    file, task, options = source
    num_proteins, splits, labels = stated
    read = readers.read(shared / "data" / file, task=task, **options)
    assert len(read.proteins) == num_proteins
    assert collections.Counter(p.split for p in read.proteins) == splits
    if isinstance(labels, int):
        assert sum(p.counts.sum() for p in read.proteins) == labels
        return
    counts: collections.Counter = collections.Counter()
    for protein in read.proteins:
        counts.update(protein.labels[protein.counts].reshape(-1).tolist())
    assert labelled.NO_CLASS not in counts
    assert {read.task.classes[k]: number for k, number in counts.items()} == labels


@pytest.mark.parametrize(
    ("mask", "number"),
    # 83,991 are marked (README); 564 of those have mask 0.
    [("cb513", 83991), ("cb513_resolved", 83991 - 564), ("none", 144011)],
)
def test_cb513_counts_the_residues_of_the_rule(shared, mask, number):
    file = shared / "data/secstruct/cb513.jsonl.gz"
    read = readers.read(file, task=Q8, mask=mask)
    assert sum(protein.counts.sum() for protein in read.proteins) == number
