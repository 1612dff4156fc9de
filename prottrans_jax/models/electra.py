"""ELECTRA (Clark et al. 2020) as ProtElectra uses it. Generator and discriminator.

The generator is a narrow BERT that fills masked positions. The discriminator is a wide
BERT that predicts for every position whether its token was replaced. Differences from
BERT:
  - both share one set of embeddings (tables and norm), as wide as the discriminator
  - an encoder of another width projects the embeddings first
  - the discriminator's head is dense, GELU, one logit per position
  - no pooler

`Electra` holds both for joint training. `ElectraEncoder` is one of them alone, as in
the released checkpoints. `split_params` and `join_params` convert between the two.
"""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import embeddings, mlp
from prottrans_jax.models import bert, choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraEncoderConfig(bert.EncoderConfig):
    """Sizes and switches of a generator, a discriminator, or an encoder alone.

    `lm_head` makes it a generator, `replaced_head` a discriminator.

    Attributes:
      d_embed: Width of the embeddings; if not d_model, they are projected.
      replaced_head: Whether there is a head for replaced tokens.
    """

    d_embed: int
    lm_head: bool = False
    replaced_head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig:
    """Sizes and switches of a generator and discriminator for joint training.

    Sizes are the discriminator's unless their name begins with `generator_`. For the
    other fields see `bert.EncoderConfig`.

    Attributes:
      d_embed: Width of the shared embeddings; None uses d_model.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    generator_num_layers: int
    generator_num_heads: int
    generator_head_dim: int
    generator_d_model: int
    generator_d_ff: int
    max_length: int
    d_embed: int | None = None
    num_token_types: int = 2
    activation: str = "gelu_exact"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    norm_epsilon: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self):
        choices.check(self, activation=tuple(mlp.ACTIVATIONS))
        if self.d_embed is None:
            setting_types.replace_fields(self, d_embed=self.d_model)

    @property
    def generator(self) -> ElectraEncoderConfig:
        """Configuration of the generator alone."""
        fields = self._shared()
        for name, value in vars(self).items():
            if name.startswith("generator_"):
                fields[name.removeprefix("generator_")] = value
        return ElectraEncoderConfig(**fields, lm_head=True)

    @property
    def discriminator(self) -> ElectraEncoderConfig:
        """Configuration of the discriminator alone."""
        return ElectraEncoderConfig(**self._shared(), replaced_head=True)

    def _shared(self):
        names = (field.name for field in dataclasses.fields(self))
        return {x: getattr(self, x) for x in names if not x.startswith("generator_")}


class ElectraEncoder(bert.EncoderModel):
    """Generator, discriminator or plain encoder, depending on the configured heads.

    Attributes:
      config: Sizes and switches.
      compute: How it is computed.
      shared_embeddings: Embeddings module to share; None creates new ones.
    """

    config: ElectraEncoderConfig
    shared_embeddings: embeddings.LearnedEmbeddings | None = None

    def setup(self):
        """Creates the blocks."""
        config, compute = self.config, self.compute
        if self.shared_embeddings is None:
            self.embeddings = bert.make_embeddings(config, compute, config.d_embed)
        else:
            self.embeddings = self.shared_embeddings
        project = config.d_embed != config.d_model
        self.encoder = bert.Encoder(config, compute, project=project)
        if config.lm_head:
            # The original's head has GELU, whatever the encoder's activation is.
            head = dataclasses.replace(config, activation="gelu_exact")
            self.lm_head = bert.MaskedLMHead(head, compute, config.d_embed)
        if config.replaced_head:
            self.replaced_head = ReplacedHead(config, compute)

    def predict(self, encoded: Float[Array, "batch length d_model"]) -> bert.Outputs:
        """Applies the heads to the output of `encode`."""
        outputs = super().predict(encoded)
        if not self.config.replaced_head:
            return outputs
        return dataclasses.replace(outputs, replaced_logits=self.replaced_head(encoded))


class Electra(nn.Module):
    """Generator and discriminator with one set of embeddings."""

    config: ElectraConfig
    compute: compute_config.ComputeConfig = compute_config.DEFAULT
    has_dot_product_attention: ClassVar[bool] = True

    @property
    def max_length(self) -> int:
        """Positions in a row that the model has embeddings for."""
        return self.config.max_length

    def setup(self):
        """Creates the embeddings that both use, and the encoders."""
        config, compute = self.config, self.compute
        self.embeddings = bert.make_embeddings(
            config.discriminator, compute, config.d_embed
        )
        self.generator = ElectraEncoder(config.generator, compute, self.embeddings)
        self.discriminator = ElectraEncoder(
            config.discriminator, compute, self.embeddings
        )

    def __call__(
        self, tokens: Int[Array, "batch length"], **features
    ) -> tuple[bert.Outputs, bert.Outputs]:
        """Outputs of both for the same tokens; arguments as in `bert.EncoderModel`."""
        return self.generate(tokens, **features), self.discriminate(tokens, **features)

    def generate(self, tokens: Int[Array, "batch length"], **features) -> bert.Outputs:
        """The generator's outputs."""
        return self.generator(tokens, **features)

    def discriminate(
        self, tokens: Int[Array, "batch length"], **features
    ) -> bert.Outputs:
        """The discriminator's outputs."""
        return self.discriminator(tokens, **features)

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
        **features,
    ) -> Float[Array, "batch length d_model"]:
        """The discriminator's representations; see `bert.EncoderModel.encode`."""
        return self.discriminator.encode(tokens, mask, **features)


class ReplacedHead(nn.Module):
    """One logit per position: dense, activation, dense."""

    config: ElectraEncoderConfig
    compute: compute_config.ComputeConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length"]:
        """Logit that the token of each position was replaced, float32."""
        config, compute = self.config, self.compute
        axes = ("embed", "mlp")
        x = bert.make_dense(config, compute, config.d_model, axes, "dense")(x)
        x = mlp.ACTIVATIONS[config.activation](x)
        logit = bert.make_dense(config, compute, 1, ("embed", "classes"), "logit_dense")
        return logit(x, out_dtype=jnp.float32)[..., 0]


def init_params(
    config: ElectraConfig | ElectraEncoderConfig,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes, of both encoders or of one."""
    if isinstance(config, ElectraConfig):
        return bert.init_model(Electra(config, compute), rng)
    return bert.init_model(ElectraEncoder(config, compute), rng)


def forward_flops(config: ElectraConfig | ElectraEncoderConfig, length: int) -> float:
    """FLOPs of the matrix products of one row: a multiply-add is 2."""
    if isinstance(config, ElectraConfig):
        parts = config.generator, config.discriminator
        return sum(forward_flops(part, length) for part in parts)
    total = bert.encoder_flops(config, length)
    total += bert.head_flops(config, length, config.d_embed)
    if config.d_embed != config.d_model:
        total += 2.0 * length * config.d_embed * config.d_model
    if config.replaced_head:
        total += 2.0 * length * (config.d_model**2 + config.d_model)
    return total


def split_params(params: types.Params) -> tuple[types.Params, types.Params]:
    """Splits joint parameters into (generator, discriminator)."""
    shared = {"embeddings": params["embeddings"]}
    return {**shared, **params["generator"]}, {**shared, **params["discriminator"]}


def join_params(generator: types.Params, discriminator: types.Params) -> types.Params:
    """Joins the parameters of a generator and discriminator trained together.

    Raises:
      ValueError: Their embeddings differ.
    """
    shared = discriminator["embeddings"]
    for path, first in jax.tree_util.tree_leaves_with_path(generator["embeddings"]):
        second = shared
        for key in path:
            second = second[key.key]
        if first.shape != second.shape or not np.array_equal(first, second):
            raise ValueError(
                "Generator and discriminator have different embeddings "
                f"(embeddings{jax.tree_util.keystr(path)}, {first.shape} against "
                f"{second.shape}): they were not trained together with shared ones."
            )

    def rest(params: Mapping) -> dict:
        return {name: x for name, x in params.items() if name != "embeddings"}

    return {
        "embeddings": shared,
        "generator": rest(generator),
        "discriminator": rest(discriminator),
    }
