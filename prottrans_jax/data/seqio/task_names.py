"""Names of the tasks of `prottrans_jax.tasks`, without importing SeqIO.

`tasks` registers exactly these: CORPUS_OBJECTIVE for every corpus and objective.
"""

import difflib

CORPORA = ("bfd", "fasta", "sample", "uniref50", "uniref100")
OBJECTIVES = (
    *("iid_denoise", "iid_denoise_all_ids", "span_corruption"),
    *("span_corruption_length_1", "masked_reconstruction"),
    *("masked_lm", "masked_lm_pairs", "masked_lm_kept"),
    *("ngram_masked_lm", "ngram_masked_lm_pairs"),
    *("permutation_lm", "permutation_lm_lanes", "causal_lm"),
)
NAMES = tuple(f"{c}_{o}" for c in CORPORA for o in OBJECTIVES)


def corpus(name: str) -> str:
    """The corpus of one of `NAMES`."""
    return next(c for c in CORPORA if name.startswith(f"{c}_"))


def unknown(name: str, names: "list[str] | tuple[str, ...]" = NAMES) -> str:
    """Error message for an unknown task, with the three most similar names."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = (
        f"Nearest: {', '.join(near)}"
        if near
        else f"One of them: {', '.join(names[:3])}"
    )
    return f"there is no task {name!r} among {len(names)}. {hint}."
