"""Small models of every family in Hugging Face's words."""

import functools

import jax
import numpy as np

from prottrans_jax.interop import families
from prottrans_jax.layers import compute as compute_config

_BERT = dict(
    vocab_size=11,
    hidden_size=6,
    num_attention_heads=2,
    intermediate_size=7,
    num_hidden_layers=2,
    max_position_embeddings=5,
)
# Attributes of config.json by family.
SIZES = {
    "t5": dict(
        vocab_size=31,
        num_layers=2,
        num_heads=3,
        d_kv=4,
        d_model=10,
        d_ff=14,
        model_type="t5",
    ),
    "bert": _BERT,
    "albert": _BERT,
    "electra": _BERT,
    "xlnet": dict(
        vocab_size=29,
        n_layer=2,
        n_head=5,
        d_head=6,
        d_model=30,
        d_inner=22,
        mem_len=None,
    ),
    "transformer_xl": dict(
        vocab_size=23,
        n_layer=2,
        n_head=3,
        d_head=5,
        d_model=12,
        d_embed=12,
        d_inner=17,
        mem_len=6,
        cutoffs=[],
        div_val=1,
    ),
}
# Models with and without heads.
ARCHITECTURES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "albert": ("AlbertModel", "AlbertForMaskedLM", "AlbertForPreTraining"),
    "electra": ("ElectraModel", "ElectraForMaskedLM", "ElectraForPreTraining"),
}


def table(family):
    """Module with Hugging Face's names of a family."""
    return families.FAMILIES[family].table


def random_params(family, config, seed=0):
    """Like those of a model with unrolled layers, but no two numbers alike."""
    module = families.FAMILIES[family].module
    unrolled = compute_config.ComputeConfig(scan_layers=False)
    init = functools.partial(module.init_params, config, compute=unrolled)
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def assert_same(ours, theirs):
    """Trees with equal names and equal numbers."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
