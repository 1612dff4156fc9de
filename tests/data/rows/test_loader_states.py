"""A state restores the same rows, and is refused for others."""

import pytest

from cases.row_loader_cases import make_loader
from prottrans_jax.data.rows import loader as loader_lib


def test_state_of_other_data_or_settings_is_refused_by_name(toy_corpus, other_corpus):
    state = make_loader(toy_corpus).state(2)
    with pytest.raises(ValueError, match="fasta_iid_denoise: the data changed") as e:
        make_loader(other_corpus).restore(state)
    assert f"{other_corpus}, split 'train', 40 records" in str(e.value)
    assert "{" not in str(e.value)
    with pytest.raises(ValueError, match="seed: 3 -> 5"):
        make_loader(toy_corpus, seed=5).restore(state)
    with pytest.raises(ValueError, match="objective"):
        make_loader(toy_corpus, task="fasta_span_corruption").restore(state)
    with pytest.raises(ValueError, match="feature_lengths"):
        make_loader(toy_corpus, feature_lengths={"inputs": 64, "targets": 65}).restore(
            state
        )


# As written before the classes of corruptions were renamed.
_SAVED = {
    "version": 1, "next_row": 6, "batch_size": 3, "split": "train",
    "feature_lengths": [40], "pack": True, "shuffle": True, "seed": 7,
    "long_sequences": "split", "num_epochs": None, "block_records": 65536,
}  # fmt: skip
_SAMPLE = "d72409b54a067d4f4ae681dde3e58de169dcaa88f0ab7b3a764db61f86ea61d6"
_ROWS = {"anchor": {"block": 0, "first_row": 0}}
_LANES = {"anchor": {"chunk": 0, "tokens": [0, 0, 0]}, "lanes": 3}
_MASKED_LM = (
    "MaskedLM(noise_density=0.15, mask_probability=0.8, random_probability=0.1, "
    "max_ngram=1, pairs=False, swap_probability=0.5)"
)
_PERMUTATION_LM = "PermutationLM(inverse_fraction=6, max_span=5, lanes=%s)"


@pytest.mark.parametrize("task, corruption, family, more", [
    ("sample_masked_lm", _MASKED_LM, "ProtBert", _ROWS),
    ("sample_permutation_lm", _PERMUTATION_LM % False, "ProtXLNet", _ROWS),
    ("sample_permutation_lm_lanes", _PERMUTATION_LM % True, "ProtXLNet", _LANES),
    ("sample_causal_lm", "CausalLM()", "ProtTXL", _LANES),
])  # fmt: skip
def test_state_with_the_former_class_names_is_restored(task, corruption, family, more):
    component = {"fingerprint": _SAMPLE, "objective": corruption, "vocabulary": family,
                 "rate": "1"}  # fmt: skip
    state = {**_SAVED, **more, "task": task, "components": [component]}
    loader = loader_lib.RowLoader(
        task, "train", batch_size=3, feature_lengths={"inputs": 40}, seed=7
    )
    assert loader.state(2) == state
    assert loader.restore(state) == 2
