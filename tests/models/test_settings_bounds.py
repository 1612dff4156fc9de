"""Sizes and rates that no model can have are refused when it is configured."""

import pytest

from prottrans_jax.models import bert, t5


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_dropout_rate_out_of_bounds_is_refused(rate):
    with pytest.raises(ValueError, match=r"T5Config\.dropout_rate=.* below 1"):
        t5.T5Config(
            vocab_size=30,
            d_model=8,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=2,
            head_dim=4,
            d_ff=16,
            mlp_activations=("relu",),
            dropout_rate=rate,
        )


def test_model_without_heads_is_refused():
    with pytest.raises(ValueError, match=r"BertConfig\.num_heads.* at least 1"):
        bert.BertConfig(
            vocab_size=30,
            d_model=8,
            num_layers=1,
            num_heads=0,
            head_dim=4,
            d_ff=16,
            max_length=8,
        )
