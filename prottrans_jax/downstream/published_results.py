"""Results of the ProtTrans paper, to print beside our own.

Percent, frozen embeddings: README of agemagician/ProtTrans (commit 27c02f0), which has
the figures of Elnaggar et al. 2021 rounded; NEW364 from the paper's text.
"""

from collections.abc import Mapping

_COLUMNS = (
    *(("q3", "CASP12"), ("q3", "TS115"), ("q3", "CB513")),
    *(("q8", "CASP12"), ("q8", "TS115"), ("q8", "CB513")),
    *(("q10", "DeepLoc"), ("q2", "DeepLoc")),
)
_ROWS = {
    "ProtT5-XL-U50": (81, 87, 86, 70, 77, 74, 81, 91),
    "ProtT5-XL-BFD": (77, 85, 84, 66, 74, 71, 77, 91),
    "ProtT5-XXL-U50": (79, 86, 85, 68, 75, 72, 79, 89),
    "ProtT5-XXL-BFD": (78, 85, 83, 66, 73, 70, 77, 90),
    "ProtBert-BFD": (76, 84, 83, 65, 73, 70, 74, 89),
    "ProtBert": (75, 83, 81, 63, 72, 66, 74, 89),
    "ProtAlbert": (74, 82, 79, 62, 70, 65, 74, 88),
    "ProtXLNet": (73, 81, 78, 62, 69, 63, 68, 87),
    "ProtElectra-Generator": (73, 78, 76, 60, 66, 61, 59, 85),
    "ProtElectra-Discriminator": (74, 81, 79, 62, 69, 65, 70, 86),
    "ProtTXL": (71, 76, 74, 59, 64, 59, 66, 85),
    "ProtTXL-BFD": (72, 75, 77, 60, 65, 60, 65, 86),
}
_NEW364 = {
    "ProtTXL": 72.8,
    "ProtBert": 80.1,
    "ProtBert-BFD": 81.1,
    "ProtT5-XL-BFD": 82.0,
    "ProtT5-XL-U50": 84.8,
    "ProtT5-XXL-U50": 83.3,
}

# (evaluation, test set) -> model -> its main metric, from 0 to 1.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, float]] = {
    column: {model: row[number] / 100 for model, row in _ROWS.items()}
    for number, column in enumerate(_COLUMNS)
} | {("q3", "NEW364"): {model: value / 100 for model, value in _NEW364.items()}}

# Released names, as `prottrans models` has them -> the names of the paper.
_RELEASED = {
    "prot_t5": "ProtT5-XL-U50",
    "prot_t5_xl_half_uniref50-enc": "ProtT5-XL-U50",
    "prot_t5_xl_uniref50": "ProtT5-XL-U50",
    "prot_t5_xl_bfd": "ProtT5-XL-BFD",
    "prot_t5_xxl_uniref50": "ProtT5-XXL-U50",
    "prot_t5_xxl_bfd": "ProtT5-XXL-BFD",
    "prot_bert_bfd": "ProtBert-BFD",
    "prot_bert": "ProtBert",
    "prot_albert": "ProtAlbert",
    "prot_xlnet": "ProtXLNet",
    "prot_electra_generator_bfd": "ProtElectra-Generator",
    "prot_electra_discriminator_bfd": "ProtElectra-Discriminator",
}


def name_in_paper(model: str) -> str | None:
    """Name in the paper of a released model; None for any other."""
    return _RELEASED.get(model.rstrip("/").rpartition("/")[2])
