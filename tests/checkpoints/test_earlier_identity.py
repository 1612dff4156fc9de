"""Identities of runs of an earlier version equal those of the same runs today.

`earlier_identities.json` holds what commit 86a33f0 saved for the objects below.
"""

import dataclasses
import json
import pathlib

import pytest

from prottrans_jax import differences
from prottrans_jax.checkpoints import earlier_identity, opening, run_identity
from prottrans_jax.models import albert, bert, electra, t5, transformer_xl, xlnet
from prottrans_jax.objectives import (
    causal_lm,
    denoising,
    masked_lm,
    permutation_lm,
    replaced_token_detection,
)
from prottrans_jax.optimizers import algorithms, schedules

SAVED = json.loads(
    pathlib.Path(__file__).with_name("earlier_identities.json").read_text()
)
SIZES = dict(num_layers=2, num_heads=3, head_dim=4, d_model=5, d_ff=7)
CONFIGS = {
    "t5": t5.T5Config(
        vocab_size=128,
        num_decoder_layers=1,
        mlp_activations=("gelu", "linear"),
        **SIZES,
    ),
    "bert": bert.BertConfig(vocab_size=30, max_length=16, **SIZES),
    "albert": albert.AlbertConfig(
        vocab_size=34, max_length=16, d_embed=6, order_head=True, pooler=True, **SIZES
    ),
    "electra": electra.ElectraConfig(
        vocab_size=30,
        max_length=16,
        d_embed=6,
        generator_num_layers=1,
        generator_num_heads=2,
        generator_head_dim=3,
        generator_d_model=8,
        generator_d_ff=9,
        **SIZES,
    ),
    "transformer_xl": transformer_xl.TransformerXLConfig(
        vocab_size=24, mem_length=6, **SIZES
    ),
    "xlnet": xlnet.XLNetConfig(vocab_size=37, mem_length=0, **SIZES),
}
OBJECTIVES = {
    "t5": denoising.Denoising(t5.T5(CONFIGS["t5"]), z_loss=1e-4),
    "bert": masked_lm.MaskedLM(bert.Bert(CONFIGS["bert"])),
    "albert": masked_lm.MaskedLM(
        albert.Albert(CONFIGS["albert"]), sentence_order_weight=1.0
    ),
    "electra": replaced_token_detection.ReplacedTokenDetection(
        electra.Electra(CONFIGS["electra"])
    ),
    "transformer_xl": causal_lm.CausalLM(
        transformer_xl.TransformerXL(CONFIGS["transformer_xl"])
    ),
    "xlnet": permutation_lm.PermutationLM(
        xlnet.XLNet(CONFIGS["xlnet"]), max_targets=10
    ),
}
OPTIMIZERS = {
    "t5": algorithms.Adafactor(
        learning_rate=schedules.InverseSqrt(0.01, 30, first_step=9)
    ),
    "bert": algorithms.Lamb(
        learning_rate=schedules.LinearWarmupLinearDecay(0.002, 4, 20), clip_norm=1.0
    ),
    "albert": algorithms.Lamb(learning_rate=0.002),
    "electra": algorithms.AdamW(
        learning_rate=schedules.ByFactors(
            "constant*cosine_decay", warmup_steps=11, steps_per_cycle=70
        )
    ),
    "transformer_xl": algorithms.AdamW(learning_rate=schedules.Constant(0.1)),
    "xlnet": algorithms.AdamW(learning_rate=schedules.InverseSqrt(0.1, 5, "linear")),
}
OTHERS = {
    "t5": dict(seed=3, init_from="/runs/bfd"),
    "xlnet": {"init_from": "hf:prot_xlnet"},
}


@pytest.mark.parametrize("family", sorted(SAVED))
def test_earlier_identity_equals_that_of_the_same_run_today(family):
    now = run_identity.identity(
        objective=OBJECTIVES[family],
        optimizer=OPTIMIZERS[family],
        **dict(seed=0, batch_size=8, init_from=None) | OTHERS.get(family, {}),
    )
    before = run_identity.of_checkpoint({"identity": SAVED[family]})
    assert not differences.lines(before, now)
    assert before == json.loads(json.dumps(now))


@pytest.mark.parametrize("family", sorted(SAVED))
def test_configuration_of_the_model_is_read_from_an_earlier_checkpoint(family):
    dtype = "bfloat16" if family == "t5" else "float32"
    found = opening.config_of_run({"identity": SAVED[family]})
    assert found == (CONFIGS[family], dtype)


def test_changed_setting_of_an_earlier_run_is_listed_by_its_place():
    changed = SAVED["t5"] | {"optimizer.learning_rate.peak": "0.02"}
    before, now = (
        run_identity.of_checkpoint({"identity": x}) for x in (changed, SAVED["t5"])
    )
    assert differences.lines(before, now) == [
        "optimizer.learning_rate.peak: 0.02 -> 0.01"
    ]


def test_function_that_no_class_replaces_keeps_its_name_and_settings():
    flat = {"rate": "cosine.<locals>.schedule", "rate.alpha": "0.5"}
    assert earlier_identity.tree(flat) == {
        "rate": {"type": "cosine.<locals>.schedule", "alpha": 0.5}
    }


def test_configuration_with_nested_numbers_is_read_back_from_json():
    config = dataclasses.replace(CONFIGS["transformer_xl"], frequencies=(1.0, 0.5))
    metadata = {"identity": run_identity.identity(model=config), "dtype": "bfloat16"}
    found = opening.config_of_run(json.loads(json.dumps(metadata)))
    assert found == (config, "bfloat16")
