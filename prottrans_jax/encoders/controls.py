"""Encoders that know nothing: what a pre-trained one must be better than.

The paper compares with random weights (Elnaggar et al. 2021, figure 3); a head on
one-hot residues is the usual second control, with no model at all.
"""

import dataclasses
import pathlib
from typing import Any

from flax import linen as nn
from flax.core import meta
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax.encoders import frozen_models, frozen_params
from prottrans_jax.layers import compute as computing
from prottrans_jax.proteins import vocabulary as vocabularies


@dataclasses.dataclass(frozen=True)
class OneHotConfig:
    """Sizes of the one-hot encoder; those of layers are 0."""

    vocab_size: int
    d_model: int
    num_layers: int = 0
    num_heads: int = 0
    head_dim: int = 0
    d_ff: int = 0


class OneHot(nn.Module):
    """Each token as a row of its table: 1 for its own residue, 0 elsewhere."""

    config: OneHotConfig
    compute: computing.ComputeConfig

    has_dot_product_attention = False
    max_length = None

    @nn.compact
    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length d_model"]:
        """The rows of the tokens."""
        del mask, deterministic
        shape = (self.config.vocab_size, self.config.d_model)
        table = self.param("table", nn.initializers.zeros, shape)
        return jnp.asarray(table, self.compute.dtype)[tokens]


def one_hot() -> frozen_models.Encoder:
    """Encoder of residues as one-hot vectors of 21: the 20 standard ones and X."""
    vocabulary = vocabularies.PROT_BERT
    letters = vocabularies.STANDARD + "X"
    config = OneHotConfig(len(vocabulary.pieces), len(letters))
    ids = vocabulary.byte_table[jnp.array(list(letters.encode()))]
    table = jnp.zeros((config.vocab_size, config.d_model))
    params = {"table": table.at[ids, jnp.arange(len(letters))].set(1)}
    return frozen_models.Encoder(
        module=OneHot(config, computing.ComputeConfig()),
        params=params,
        config=config,
        vocabulary=vocabulary,
        prefix=(),
        suffix=(),
        name="one_hot",
        source=pathlib.Path("one_hot"),
        fingerprint=frozen_params.fingerprint(params),
        revision="",
    )


def random_weights(
    encoder: frozen_models.Encoder, seed: int = 0
) -> frozen_models.Encoder:
    """The same architecture with the weights of its initialisation.

    Args:
      encoder: Any encoder; its weights are not used.
      seed: Seed of the weights.
    """
    tokens, mask = (jnp.asarray(x) for x in encoder.tokenize(["M"]))
    init: Any = encoder.module.init
    variables = init(
        jax.random.key(seed), tokens, mask, deterministic=True, method="encode"
    )
    params = meta.unbox(variables["params"])
    return dataclasses.replace(
        encoder,
        params=params,
        name=f"random_weights({encoder.name}, seed {seed})",
        fingerprint=frozen_params.fingerprint(params),
        revision="",
    )
