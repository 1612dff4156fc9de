"""Gin files that bind types, attention and loops in a family's configuration.

So did earlier versions; now they are in `compute.ComputeConfig`.
"""

import dataclasses

import numpy as np
import pytest

from prottrans_jax.config import building
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import xlnet

LEAVES = {
    "sample.gin": "T5Config",
    "sample_bert.gin": "BertConfig",
    "sample_albert.gin": "AlbertConfig",
    "sample_electra.gin": "ElectraConfig",
    "sample_xlnet.gin": "XLNetConfig",
    "sample_transformer_xl.gin": "TransformerXLConfig",
}
OTHER = {
    "dtype": "bfloat16",
    "param_dtype": "bfloat16",
    "attention": "blockwise",
    "attention_block_size": 64,
    "remat_policy": "save_outputs",
    "scan_layers": False,
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_bindings_of_a_configuration_say_how_the_model_is_computed(leaf):
    before = [f"{LEAVES[leaf]}.{name} = {value!r}" for name, value in OTHER.items()]
    building.parse([leaf], ["MODEL_DIR = '/tmp/none'", *before])
    model = building.build("%MODEL")
    assert model.compute == compute_config.ComputeConfig(**OTHER)
    assert not OTHER.keys() & {x.name for x in dataclasses.fields(model.config)}


def test_file_that_binds_the_configuration_alone_is_understood(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(
        """
from __gin__ import dynamic_registration
from prottrans_jax.models import xlnet

xlnet.XLNet.config = @xlnet.XLNetConfig()
xlnet.XLNetConfig.vocab_size = 37
xlnet.XLNetConfig.num_layers = 1
xlnet.XLNetConfig.num_heads = 2
xlnet.XLNetConfig.head_dim = 4
xlnet.XLNetConfig.d_model = 8
xlnet.XLNetConfig.d_ff = 8
xlnet.XLNetConfig.dtype = "bfloat16"
xlnet.XLNetConfig.remat_policy = "full"
xlnet.XLNetConfig.scan_layers = True
"""
    )
    building.parse([path], ["xlnet.XLNetConfig.attention = 'blockwise'"])
    compute = building.configured(xlnet.XLNet)().compute
    assert np.dtype(compute.dtype).name == "bfloat16"
    assert (compute.remat_policy, compute.attention) == ("full", "blockwise")
