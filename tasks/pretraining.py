"""Registers every pre-training objective on every corpus."""

from collections.abc import Callable

import seqio

from prottrans_jax.data.seqio import preprocessors, record_source
from prottrans_jax.proteins import vocabulary

# Last part of the task's name -> preprocessor, which holds the vocabulary.
OBJECTIVES: dict[str, Callable[[], preprocessors.Corrupt]] = {
    # T5
    # ProtT5's own
    "iid_denoise": preprocessors.iid_denoise,
    # the same, with random tokens drawn as in the T5 library
    "iid_denoise_all_ids": lambda: preprocessors.iid_denoise(random_tokens="all_ids"),
    "span_corruption": preprocessors.span_corruption,
    "span_corruption_length_1": lambda: preprocessors.span_corruption(
        mean_span_length=1.0
    ),
    "masked_reconstruction": preprocessors.masked_reconstruction,
    # BERT
    "masked_lm": preprocessors.masked_lm,
    "masked_lm_pairs": lambda: preprocessors.masked_lm(pairs=True),
    # ELECTRA's script: 85 % masked, the rest kept, none substituted
    "masked_lm_kept": lambda: preprocessors.masked_lm(
        mask_probability=0.85, random_probability=0.0
    ),
    # ALBERT: runs of 1 to 3
    "ngram_masked_lm": lambda: preprocessors.masked_lm(
        vocabulary=vocabulary.PROT_ALBERT, max_ngram=3
    ),
    "ngram_masked_lm_pairs": lambda: preprocessors.masked_lm(
        vocabulary=vocabulary.PROT_ALBERT, max_ngram=3, pairs=True
    ),
    # XLNet; in lanes for memories
    "permutation_lm": preprocessors.permutation_lm,
    "permutation_lm_lanes": lambda: preprocessors.permutation_lm(lanes=True),
    # Transformer-XL
    "causal_lm": preprocessors.causal_lm,
}


def add(corpus: str) -> None:
    """Registers `corpus`_`objective` for every objective."""
    for name, corrupt in OBJECTIVES.items():
        seqio.TaskRegistry.add(
            f"{corpus}_{name}",
            source=record_source.RecordSource(corpus),
            preprocessors=preprocessors.pretraining(corrupt()),
            output_features=preprocessors.output_features(corrupt()),
            metric_fns=[],
        )
