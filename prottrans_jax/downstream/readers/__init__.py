"""Readers of labelled proteins, a file for each family of formats.

label_files      `read`: recognises the format, makes proteins of a task
text_files       lines of a plain or compressed file
records          what every reader gives: records with named columns
json_lines       JSON Lines
delimited        CSV and TSV: a user's own, NetSurfP-2.0, DeepLoc, FLIP
labelled_fasta   FASTA of biotrainer and PBC, and of DeepLoc
flip_folders     FLIP's folders of sequences, labels and masks
deriving         the task of a file, published or derived
label_values     from columns to residues, labels and mask
"""

from prottrans_jax.downstream.readers.deriving import NoLabelsError
from prottrans_jax.downstream.readers.label_files import read

__all__ = ["NoLabelsError", "read"]
