"""Impossible sizes and rates are refused when a model is configured."""

import pytest

from prottrans_jax.layers import compute
from prottrans_jax.models import bert, electra, t5

SIZES = dict(vocab_size=30, d_model=8, num_layers=1, num_heads=2, head_dim=4, d_ff=16)


def make_t5(**changes):
    sizes = SIZES | {"num_decoder_layers": 1, "mlp_activations": ("relu",)}
    return t5.T5Config(**sizes | changes)


def make_bert(**changes):
    return bert.BertConfig(**SIZES | {"max_length": 8} | changes)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_dropout_rate_out_of_bounds_is_refused(rate):
    with pytest.raises(ValueError, match=r"T5Config\.dropout_rate=.* below 1"):
        make_t5(dropout_rate=rate)


@pytest.mark.parametrize("name", [*SIZES, "max_length"])
def test_size_below_1_is_refused(name):
    with pytest.raises(ValueError, match=rf"BertConfig\.{name}=0: .* at least 1"):
        make_bert(**{name: 0})


def test_block_size_below_1_is_refused():
    with pytest.raises(ValueError, match=r"ComputeConfig\.attention_block_size=0: "):
        compute.ComputeConfig(attention_block_size=0)


def test_negative_number_is_refused_where_0_is_none():
    assert make_t5(num_decoder_layers=0).num_decoder_layers == 0
    for name in ("num_decoder_layers", "norm_epsilon"):
        with pytest.raises(ValueError, match=rf"T5Config\.{name}=-1: .* at least 0"):
            make_t5(**{name: -1})


def test_size_of_a_generator_is_refused_by_its_own_name():
    generator = {f"generator_{n}": v for n, v in SIZES.items() if n != "vocab_size"}
    generator["generator_num_layers"] = 0
    with pytest.raises(ValueError, match=r"ElectraConfig\.generator_num_layers=0"):
        electra.ElectraConfig(**SIZES, **generator, max_length=8)


@pytest.mark.parametrize(("buckets", "distance"), [(3, 128), (32, 16)])
def test_buckets_that_no_distance_falls_into_are_refused(buckets, distance):
    with pytest.raises(ValueError, match=rf"buckets={buckets} .*distance={distance}:"):
        make_t5(relative_num_buckets=buckets, relative_max_distance=distance)
