"""ALBERT (Lan et al. 2020) as ProtAlbert uses it. All layers share their parameters.

Differences from BERT:
  - one set of layer parameters for all layers
  - embeddings of width d_embed, projected to d_model before the first layer
  - GELU by its tanh approximation; no dropout
  - head for masked tokens of width d_embed; optional classifier of the order of two
    halves
"""

import dataclasses

import jax

from prottrans_jax import types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import bert


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlbertConfig(bert.EncoderConfig):
    """Sizes and switches of an ALBERT; for the others see `bert.EncoderConfig`.

    Attributes:
      d_embed: Width of the embeddings and of the head for masked tokens.
      pooler: Whether there is a dense layer with tanh on [CLS].
      order_head: Whether the pooler has a classifier of the order of two halves.
    """

    d_embed: int
    activation: str = "gelu"
    # The released xxlarge models, whose shape ProtAlbert has, used no dropout.
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    pooler: bool = False
    order_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        bert.check_order_head(self)


class Albert(bert.EncoderModel):
    """ALBERT with the heads that its configuration names."""

    config: AlbertConfig

    def setup(self):
        """Creates the blocks."""
        config, compute = self.config, self.compute
        self.embeddings = bert.make_embeddings(config, compute, config.d_embed)
        self.encoder = bert.Encoder(config, compute, project=True, share_layers=True)
        if config.lm_head:
            self.lm_head = bert.MaskedLMHead(config, compute, config.d_embed)
        if config.pooler:
            self.pooler = bert.make_dense(
                config, compute, config.d_model, ("embed", "mlp")
            )
        if config.order_head:
            self.order_head = bert.make_dense(config, compute, 2, ("embed", "classes"))


def init_params(
    config: AlbertConfig,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes."""
    return bert.init_model(Albert(config, compute), rng)


def forward_flops(config: AlbertConfig, length: int) -> float:
    """FLOPs of the matrix products of one row: a multiply-add is 2."""
    projection = 2.0 * length * config.d_embed * config.d_model
    heads = bert.head_flops(config, length, config.d_embed)
    return projection + bert.encoder_flops(config, length) + heads
