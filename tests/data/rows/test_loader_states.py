"""A state restores the same rows, and is refused for others."""

from collections.abc import Callable
import dataclasses
import json
import re

import pytest

from cases.row_loader_cases import make_loader, make_task
from prottrans_jax.data.corruption import masking
from prottrans_jax.data.rows import loader as loader_lib
from prottrans_jax.data.seqio import preprocessors
from prottrans_jax.tasks import pretraining


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


def test_corruption_is_saved_as_data():
    loader = loader_lib.RowLoader(
        "sample_permutation_lm", batch_size=3, feature_lengths={"inputs": 40}
    )
    state = json.loads(json.dumps(loader.state(2)))
    assert state["version"] == 2
    (component,) = state["components"]
    assert component == {
        "fingerprint": _SAMPLE,
        "objective": {"type": "PermutationTargets", "inverse_fraction": 6,
                      "max_span": 5, "lanes": False},
        "vocabulary": "ProtXLNet",
        "rate": "1",
    }  # fmt: skip
    assert loader.restore(state) == 2


def test_corruption_that_is_not_data_is_refused_at_the_start(toy_corpus):
    @dataclasses.dataclass(frozen=True)
    class Weighted(masking.TokenMasking):
        weight: Callable[[int], float] = float

    task = make_task(toy_corpus, "weighted", preprocessors.Corrupt(Weighted()))
    with pytest.raises(ValueError, match=r"corruption\.weight=<class 'float'>"):
        make_loader(None, task=task, feature_lengths={"inputs": 40})


# States of earlier versions: commit fbdfc4b wrote these texts.
_SAVED = {
    "version": 1, "next_row": 6, "batch_size": 3, "split": "train",
    "pack": True, "shuffle": True, "seed": 7,
    "long_sequences": "split", "num_epochs": None, "block_records": 65536,
}  # fmt: skip
_SAMPLE = "d72409b54a067d4f4ae681dde3e58de169dcaa88f0ab7b3a764db61f86ea61d6"
_ROWS = {"anchor": {"block": 0, "first_row": 0}}
_LANES = {"anchor": {"chunk": 0, "tokens": [0, 0, 0]}, "lanes": 3}
_IID = "IidDenoise(noise_density=0.15, random_probability=0.1, random_tokens='%s')"
_SPANS = "SpanCorruption(noise_density=0.15, mean_span_length=%s)"
_MASKED_LM = (
    "MaskedLM(noise_density=0.15, mask_probability=%s, random_probability=%s, "
    "max_ngram=%s, pairs=%s, swap_probability=0.5)"
)
_PERMUTATION_LM = "PermutationLM(inverse_fraction=6, max_span=5, lanes=%s)"
_EARLIER = {
    "iid_denoise": ("ProtT5", _IID % "amino_acids"),
    "iid_denoise_all_ids": ("ProtT5", _IID % "all_ids"),
    "span_corruption": ("ProtT5", _SPANS % "3.0"),
    "span_corruption_length_1": ("ProtT5", _SPANS % "1.0"),
    "masked_reconstruction": (
        "ProtT5",
        "MaskedReconstruction(noise_density=0.15, random_probability=0.0, "
        "random_tokens='amino_acids')",
    ),
    "masked_lm": ("ProtBert", _MASKED_LM % (0.8, 0.1, 1, False)),
    "masked_lm_pairs": ("ProtBert", _MASKED_LM % (0.8, 0.1, 1, True)),
    "masked_lm_kept": ("ProtBert", _MASKED_LM % (0.85, 0.0, 1, False)),
    "ngram_masked_lm": ("ProtAlbert", _MASKED_LM % (0.8, 0.1, 3, False)),
    "ngram_masked_lm_pairs": ("ProtAlbert", _MASKED_LM % (0.8, 0.1, 3, True)),
    "permutation_lm": ("ProtXLNet", _PERMUTATION_LM % False),
    "permutation_lm_lanes": ("ProtXLNet", _PERMUTATION_LM % True),
    "causal_lm": ("ProtTXL", "CausalLM()"),
}


def _earlier_state(objective, lengths, fingerprint=_SAMPLE):
    family, corruption = _EARLIER[objective]
    component = {"fingerprint": fingerprint, "objective": corruption,
                 "vocabulary": family, "rate": "1"}  # fmt: skip
    in_lanes = objective in ("permutation_lm_lanes", "causal_lm")
    return {**_SAVED, **(_LANES if in_lanes else _ROWS), "task": "a task",
            "feature_lengths": lengths, "components": [component]}  # fmt: skip


def _sample_loader(objective):
    names = ["inputs", "targets"] if _EARLIER[objective][0] == "ProtT5" else ["inputs"]
    return loader_lib.RowLoader(
        f"sample_{objective}", batch_size=3, feature_lengths=dict.fromkeys(names, 40),
        seed=7,
    )  # fmt: skip


def test_every_objective_has_a_state_of_an_earlier_version():
    assert _EARLIER.keys() == pretraining.OBJECTIVES.keys()


@pytest.mark.parametrize("objective", _EARLIER)
def test_state_of_an_earlier_version_is_restored(objective):
    loader = _sample_loader(objective)
    lengths = [40] * len(loader.state(0)["feature_lengths"])
    state = _earlier_state(objective, lengths)
    assert loader.restore(state) == 2
    assert loader.state(2)["next_row"] == 6


@pytest.mark.parametrize(
    "written, changed, difference",
    [
        ("noise_density=0.15", "noise_density=0.3", "noise_density: 0.3 -> 0.15"),
        ("max_ngram=1", "max_ngram=3", "max_ngram: 3 -> 1"),
        ("pairs=False", "pairs=True", "pairs: True -> False"),
        ("MaskedLM", "Custom", "objective: Custom -> TokenMasking"),
        ("MaskedLM", "make.<locals>.Custom", "objective: Custom -> TokenMasking"),
        ("0.5)", "0.5, spans=(2, 3))", "spans: 2, 3 -> (absent)"),
    ],
)
def test_difference_from_a_state_of_an_earlier_version_is_named(
    written, changed, difference
):
    state = _earlier_state("masked_lm", [40])
    (component,) = state["components"]
    component["objective"] = component["objective"].replace(written, changed)
    with pytest.raises(ValueError) as e:
        _sample_loader("masked_lm").restore(state)
    (line,) = [line for line in str(e.value).splitlines() if " -> " in line][1:]
    place = "" if difference.startswith("objective") else "objective."
    assert line.strip() == f"sample_masked_lm: {place}{difference}"


@pytest.mark.parametrize("version", [1, 2])
def test_changed_setting_of_a_corruption_is_named(toy_corpus, version):
    lengths = {"inputs": 40}
    saved = make_loader(toy_corpus, task="fasta_masked_lm", feature_lengths=lengths)
    state = saved.state(2)
    if version == 1:
        state["version"] = 1
        state["components"][0]["objective"] = _EARLIER["masked_lm"][1]
    changed = preprocessors.masked_lm(noise_density=0.3)
    loader = make_loader(
        None, task=make_task(toy_corpus, "changed", changed), feature_lengths=lengths
    )
    with pytest.raises(ValueError) as e:
        loader.restore(state)
    lines = str(e.value).splitlines()[1:-1]
    assert lines == ["  changed: objective.noise_density: 0.15 -> 0.3"]


@pytest.mark.parametrize(
    "text", ["", "MaskedLM", "MaskedLM(", "MaskedLM(3)", "MaskedLM(rate=f(3))"]
)
def test_unreadable_corruption_of_an_earlier_version_is_refused(text):
    state = _earlier_state("masked_lm", [40])
    state["components"][0]["objective"] = text
    with pytest.raises(ValueError, match=f"has the corruption {re.escape(repr(text))}"):
        _sample_loader("masked_lm").restore(state)


def test_state_of_an_unknown_version_is_refused():
    state = _earlier_state("masked_lm", [40]) | {"version": 3}
    with pytest.raises(ValueError, match="has version 3; this library reads 1 to 2"):
        _sample_loader("masked_lm").restore(state)
