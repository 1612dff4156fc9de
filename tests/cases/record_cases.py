"""Records of prepared folders."""

import numpy as np


def iterate(split, batch=4096):
    """(id, residues) of all records of a `store.RecordSplit`, in order."""
    for start in range(0, split.num_records, batch):
        indices = np.arange(start, min(start + batch, split.num_records))
        for name, residues in split.begin(indices).records():
            yield name.decode(), residues
