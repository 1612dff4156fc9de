"""The encoder of a model whose parameters are in memory, as in a training run."""

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.encoders import loading
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import bert, t5

SIZES = dict(vocab_size=30, num_layers=2, num_heads=3, head_dim=4, d_model=10, d_ff=14)


def bert_model():
    return bert.Bert(
        bert.BertConfig(**SIZES, max_length=9), compute_config.ComputeConfig()
    )


def t5_model():
    config = t5.T5Config(**SIZES | {"vocab_size": 128}, num_decoder_layers=2)
    return t5.T5(config, compute_config.ComputeConfig(dtype=jnp.bfloat16))


@pytest.mark.parametrize("make", [bert_model, t5_model])
def test_its_vectors_are_those_of_the_stacked_model_in_float32(make):
    model = make()
    dummy = jnp.zeros((2, 5), jnp.int32)
    inputs = (dummy, dummy) if isinstance(model, t5.T5) else (dummy,)
    params = meta.unbox(model.init(jax.random.key(0), *inputs, deterministic=True))
    encoder = loading.encoder_in_training(
        model, jax.device_get(params["params"]), "run, step 7"
    )
    tokens, mask = encoder.tokenize(["MKTAY", "MK"])
    wide = model.clone(compute=compute_config.ComputeConfig())
    expected = wide.apply(
        params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        deterministic=True,
        method="encode",
    )
    assert encoder.name == "run, step 7" and encoder.dtype == "float32"
    np.testing.assert_allclose(
        np.asarray(encoder(tokens, mask))[mask],
        np.asarray(expected)[mask],
        rtol=1e-5,
        atol=1e-5,
    )
