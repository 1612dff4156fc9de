"""What each family says about a residue, and from which others.

  ==============  =====================  ===========================================
  name            families               predicts residue i from
  ==============  =====================  ===========================================
  masked          BERT, ALBERT, ELECTRA  all other residues; i is the mask piece
                  with a generator
  denoising       T5 (ProtT5)            encoder: all other residues, i is
                                         <extra_id_0>; decoder: residues before i
  spans           T5 (Ankh, T5's own)    encoder: the same; decoder: <extra_id_0>
  permutation     XLNet                  all other residues: i is hidden from every
                                         position, its query attends to the rest
  left-to-right   XLNet, Transformer-XL  the residues before i
  replaced        ELECTRA's              all residues: the logit that residue i was
                  discriminator          replaced
  ==============  =====================  ===========================================

All but the last are probabilities of pieces: a softmax over the whole vocabulary. One
pass over the unmasked protein gives an estimate for "masked" and "denoising": there the
model also sees residue i itself.

ProtT5 was trained to write the whole protein from a copy with hidden residues (Elnaggar
et al. 2021, section 2.3). So "denoising" feeds the decoder the true residues before i,
all of which the encoder sees too: the prediction is conditioned on all other residues.
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax import types
from prottrans_jax.encoders import frozen_models
from prottrans_jax.models import (
    albert,
    bert,
    electra,
    t5,
    transformer_xl,
    xlnet,
)
from prottrans_jax.proteins import vocabulary as vocabularies

# Type of <cls> among XLNet's token types; <sep> belongs to the first sequence, type 0.
_XLNET_CLS_TYPE = 2


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Base class: rows of tokens to logits. Hashable, a static argument of `jax.jit`.

    A row is the special pieces before a protein, its residues, the special pieces after
    it, and padding on the right.

    Attributes:
      module: The model.
      vocabulary: Its pieces.
      prefix: Ids before the residues.
      suffix: Ids after them.
    """

    module: nn.Module
    vocabulary: vocabularies.Vocabulary
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    name: ClassVar[str]
    # Kinds of scores of variants, the usual one first; see `scorers.Scorer.variants`.
    marginals: ClassVar[tuple[str, ...]] = ()
    # Whether residues are predicted from those before them only.
    is_causal: ClassVar[bool] = False

    def masked(
        self,
        params: types.Params,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch masks"],
    ) -> Float[Array, "batch masks vocab"]:
        """Logits of hidden residues.

        Args:
          params: Parameters of the model.
          tokens: Token ids of rows.
          segments: 1 at tokens, 0 at padding.
          positions: Positions in the row to hide and predict. Several of a row are
            hidden at the same time; equal ones are the same mask.
        """
        raise NotImplementedError(f"{self.name}: residues cannot be masked.")

    def one_pass(
        self,
        params: types.Params,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """Logits of the piece at each position, from one pass without masks.

        Args:
          params: Parameters of the model.
          tokens: Token ids of rows.
          segments: 1 at tokens, 0 at padding.
        """
        raise NotImplementedError(f"{self.name}: there is no single pass.")

    def _apply(self, params: types.Params, *inputs: Any, **keywords: Any) -> Any:
        return self.module.apply(
            {"params": params}, *inputs, deterministic=True, **keywords
        )


@dataclasses.dataclass(frozen=True)
class Masked(Likelihood):
    """BERT's head for masked tokens (Devlin et al. 2019)."""

    name = "masked"
    marginals = ("masked", "wild-type")

    def masked(self, params, tokens, segments, positions):
        """See `Likelihood.masked`."""
        tokens = _put(tokens, positions, self.vocabulary.mask_id)
        encoded = self._apply(params, tokens, segments, method="encode")
        # The head runs on the hidden positions alone.
        return self._predict(params, _take(encoded, positions))

    def one_pass(self, params, tokens, segments):
        """See `Likelihood.one_pass`."""
        encoded = self._apply(params, tokens, segments, method="encode")
        return self._predict(params, encoded)

    def _predict(self, params, encoded):
        return self.module.apply({"params": params}, encoded, method="predict").logits


@dataclasses.dataclass(frozen=True)
class Denoising(Likelihood):
    """ProtT5's reconstruction of the whole protein; see the head of this file."""

    name = "denoising"
    marginals = ("masked", "wild-type")

    def masked(self, params, tokens, segments, positions):
        """See `Likelihood.masked`.

        The decoder's input has the true residues: predict several hidden residues of
        one row only where that is meant.
        """
        hidden = _put(tokens, positions, self.vocabulary.sentinel_id(0))
        return _take(self._decode(params, hidden, tokens, segments), positions)

    def one_pass(self, params, tokens, segments):
        """See `Likelihood.one_pass`."""
        return self._decode(params, tokens, tokens, segments)

    def _decode(self, params, inputs, targets, segments):
        encoded = self._apply(params, inputs, segments, method="encode")
        shifted = _shift(targets, self.vocabulary.pad_id)
        return self._apply(
            params, encoded, segments, shifted, segments, method="decode"
        )


@dataclasses.dataclass(frozen=True)
class Spans(Likelihood):
    """T5's own objective (Raffel et al. 2020): the decoder writes what is hidden.

    For one hidden residue its output is "<extra_id_0> RESIDUE".
    """

    name = "spans"
    marginals = ("masked",)

    def masked(self, params, tokens, segments, positions):
        """See `Likelihood.masked`; one hidden residue in each row.

        Raises:
          ValueError: There are several.
        """
        if positions.shape[1] != 1:
            raise ValueError("spans: one hidden residue in each row.")
        sentinel = self.vocabulary.sentinel_id(0)
        hidden = _put(tokens, positions, sentinel)
        encoded = self._apply(params, hidden, segments, method="encode")
        start = jnp.array([self.vocabulary.pad_id, sentinel], tokens.dtype)
        start = jnp.broadcast_to(start, (len(tokens), 2))
        return self._apply(params, encoded, segments, start, method="decode")[:, 1:]


@dataclasses.dataclass(frozen=True)
class Permutation(Likelihood):
    """XLNet (Yang et al. 2019): the hidden residues come last in the order."""

    name = "permutation"
    marginals: ClassVar[tuple[str, ...]] = ("masked",)

    def masked(self, params, tokens, segments, positions):
        """See `Likelihood.masked`."""
        # Rank -1 is context. Hidden residues have rank 0: no position of rank 0 or -1
        # attends to them, not even the other hidden ones.
        ranks = _put(jnp.full_like(tokens, -1), positions, 0)
        return self._predict(params, tokens, segments, ranks, positions)

    def _predict(self, params, tokens, segments, ranks, positions):
        is_cls = (tokens == self.vocabulary.cls_id) & (segments > 0)
        return self._apply(
            params,
            tokens,
            segment_ids=segments,
            token_types=jnp.where(is_cls, _XLNET_CLS_TYPE, 0),
            factorization_ranks=ranks,
            target_positions=positions,
        ).values


@dataclasses.dataclass(frozen=True)
class PermutationLeftToRight(Permutation):
    """XLNet with the order of the sequence; `<sep>` and `<cls>` are context.

    Relative positions of these tell the model the length of the protein.
    """

    name = "left-to-right"
    marginals = ("mutant", "wild-type")
    is_causal = True

    def masked(self, params, tokens, segments, positions):
        """A residue is never seen by those before it: the logits of `one_pass`."""
        return _take(self.one_pass(params, tokens, segments), positions)

    def one_pass(self, params, tokens, segments):
        """See `Likelihood.one_pass`."""
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        length = jnp.sum(segments, axis=1, keepdims=True)
        is_residue = places < length - len(self.suffix)
        ranks = jnp.where(is_residue, places, -1)
        return self._predict(params, tokens, segments, ranks, places)


@dataclasses.dataclass(frozen=True)
class LeftToRight(Likelihood):
    """Transformer-XL (Dai et al. 2019): the next residue, with memories.

    A protein of more tokens than `mem_length` is read in parts of that length, each
    with the memories of the one before it, as in training.
    """

    name = "left-to-right"
    marginals = ("mutant", "wild-type")
    is_causal = True

    def masked(self, params, tokens, segments, positions):
        """A residue is never seen by those before it: the logits of `one_pass`."""
        return _take(self.one_pass(params, tokens, segments), positions)

    def one_pass(self, params, tokens, segments):
        """See `Likelihood.one_pass`; the first position has logits of 0."""
        size = self.module.config.mem_length
        length = tokens.shape[1]
        if not size or length <= size:
            logits = self._apply(params, tokens, segment_ids=segments).values
        else:
            logits = self._in_parts(params, tokens, segments, size)[:, :length]
        return jnp.pad(logits[:, :-1], ((0, 0), (1, 0), (0, 0)))

    def _in_parts(self, params, tokens, segments, size):
        rows, length = tokens.shape
        padding = (0, 0), (0, -length % size)

        def parts(values):  # [rows, length] -> [parts, rows, size]
            return jnp.pad(values, padding).reshape(rows, -1, size).swapaxes(0, 1)

        def step(carry, part):
            memories, memory_segments = carry
            part_tokens, part_segments = part
            out = self._apply(
                params,
                part_tokens,
                segment_ids=part_segments,
                memories=memories,
                memory_segments=memory_segments,
            )
            memories = out.memories.astype(memories.dtype)
            return (memories, part_segments), out.values

        config = self.module.config
        shape = (config.num_layers, rows, size, config.d_model)
        memories = jnp.zeros(shape, self.module.compute.dtype)
        start = memories, jnp.zeros((rows, size), segments.dtype)
        _, logits = jax.lax.scan(step, start, (parts(tokens), parts(segments)))
        # [parts, rows, size, vocab] -> [rows, parts * size, vocab]
        return logits.swapaxes(0, 1).reshape(rows, -1, logits.shape[-1])


@dataclasses.dataclass(frozen=True)
class Replaced(Likelihood):
    """ELECTRA's discriminator (Clark et al. 2020), which knows no probabilities."""

    name = "replaced"
    marginals = ("mutant",)

    def replaced_logits(
        self,
        params: types.Params,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
    ) -> Float[Array, "batch length"]:
        """Logit that the piece of each position was replaced."""
        encoded = self._apply(params, tokens, segments, method="encode")
        outputs: Any = self.module.apply({"params": params}, encoded, method="predict")
        return outputs.replaced_logits


def choose(
    model: frozen_models.Model, name: str | None = None
) -> tuple[Likelihood, types.Params]:
    """The likelihood of a model, and the parameters for it.

    Args:
      model: From `load_model`.
      name: Name of a likelihood; None: the first that the model has, in the order of
        the table at the head of this file.

    Raises:
      ValueError: The model has no such likelihood, or none; says what is missing. Or
        its ids of residues are unknown.
    """
    if model.unknown_ids:
        raise ValueError(model.unknown_ids)
    candidates = _candidates(model)
    for kind, module, params in candidates:
        if name in (None, kind.name):
            likelihood = kind(module, model.vocabulary, model.prefix, model.suffix)
            return likelihood, params
    if not candidates:
        raise ValueError(f"{model.name} cannot score proteins: {_missing(model)}.")
    names = ", ".join(kind.name for kind, *_ in candidates)
    raise ValueError(f"{model.name} has no likelihood {name!r}. It has {names}.")


def _candidates(model) -> list[tuple[type[Likelihood], nn.Module, types.Params]]:
    """(likelihood, module, parameters) of a model, the usual one first."""
    config, module, params = model.config, model.module, model.params
    if isinstance(config, electra.ElectraConfig):
        generator, discriminator = electra.split_params(params)
        network = electra.ElectraEncoder
        return [
            (Masked, network(config.generator, module.compute), generator),
            (Replaced, network(config.discriminator, module.compute), discriminator),
        ]
    if isinstance(config, t5.T5Config):
        has_sentinel = bool(model.vocabulary.num_sentinels)
        kinds = [Denoising, Spans] if config.num_decoder_layers and has_sentinel else []
    elif isinstance(config, bert.BertConfig | albert.AlbertConfig):
        kinds = [Masked] if config.lm_head and model.vocabulary.mask else []
    elif isinstance(config, electra.ElectraEncoderConfig):
        kinds = [Masked] if config.lm_head and model.vocabulary.mask else []
        kinds += [Replaced] if config.replaced_head else []
    elif isinstance(config, xlnet.XLNetConfig):
        kinds = [Permutation, PermutationLeftToRight] if config.lm_head else []
        # In training half of the rows may run backward; here all run forward.
        module = module.clone(config=dataclasses.replace(config, bi_data=False))
    elif isinstance(config, transformer_xl.TransformerXLConfig):
        kinds = [LeftToRight] if config.lm_head else []
    else:
        raise TypeError(f"{type(config).__name__} is no family's configuration.")
    return [(kind, module, params) for kind in kinds]


def _missing(model) -> str:
    """What a model without a likelihood lacks."""
    config, vocabulary = model.config, model.vocabulary
    if isinstance(config, t5.T5Config):
        if not config.num_decoder_layers:
            return (
                "it has an encoder only, and the residues are predicted by the "
                "decoder. Take the whole model, such as prot_t5_xl_u50"
            )
        return f"{vocabulary.name} has no <extra_id_0>, which hides a residue"
    if config.lm_head:
        return f"{vocabulary.name} has no mask piece"
    return "the checkpoint has no head that predicts residues"


def _put(values: jax.Array, positions: jax.Array, value: int) -> jax.Array:
    """A copy of rows with `value` at some positions of each."""
    return values.at[jnp.arange(len(values))[:, None], positions].set(value)


def _take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Values at some positions of each row."""
    return jnp.take_along_axis(values, positions[..., None], axis=1)


def _shift(tokens: jax.Array, first: int) -> jax.Array:
    """Rows moved right by one, the decoder's input for these targets."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=first)
