"""Small models of every family, with logits far from uniform, and proteins."""

import functools

import jax
import numpy as np

from prottrans_jax.interop import families, huggingface, vocabularies
from prottrans_jax.layers import compute as compute_config

# Different lengths, padded to rows of 8 tokens; X is context only.
PROTEINS = ("MKXWC", "ACDEFG")

_ENCODER = dict(
    num_layers=1, num_heads=2, head_dim=4, d_model=8, d_ff=13, max_length=40
)
_MEMORY = dict(num_heads=3, head_dim=4, d_model=12, d_ff=17)
# Family, and fields of its configuration.
MODELS = {
    "bert": ("bert", dict(_ENCODER, vocab_size=30)),
    "albert": ("albert", dict(_ENCODER, vocab_size=34, d_embed=6)),
    "generator": (
        "electra",
        dict(_ENCODER, vocab_size=30, d_embed=10, lm_head=True),
    ),
    "discriminator": (
        "electra",
        dict(_ENCODER, vocab_size=30, d_embed=8, replaced_head=True),
    ),
    "t5": (
        "t5",
        dict(
            vocab_size=128,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=3,
            head_dim=4,
            d_model=10,
            d_ff=14,
        ),
    ),
    "xlnet": ("xlnet", dict(_MEMORY, num_layers=1, vocab_size=37)),
    "transformer_xl": (
        "transformer_xl",
        dict(_MEMORY, num_layers=2, vocab_size=24, mem_length=0),
    ),
}


def write_model(folder, name, seed=3, **fields):
    """A model in Hugging Face's layout; the same numbers on every machine."""
    family_name, usual = MODELS[name]
    family = families.FAMILIES[family_name]
    config = family.config_class(**{**usual, **fields})
    unrolled = compute_config.ComputeConfig(scan_layers=False)
    init = functools.partial(family.module.init_params, config, compute=unrolled)
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        values = rng.normal(size=x.shape)
        if path[-1].key == "scale":
            return (1.0 + 0.2 * values).astype(np.float32)
        return (0.5 * values).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    huggingface.write(folder, config, params)
    around = family.prefix_ids, family.suffix_ids
    vocabularies.write(folder, family.vocabulary, *around)
    return folder
