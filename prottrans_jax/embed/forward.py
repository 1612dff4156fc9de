"""One call of a model on a batch: selects hidden states and pools them."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import numbers
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.embed import layerwise, pooling
from prottrans_jax.kernels import frozen, softmax_attention

# Above this size of the scores of all heads of a batch, attention is blockwise.
PLAIN_SCORES_BYTES = {"cpu": 256 << 20, "accelerator": 2 << 30}
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Layers:
    """Which hidden states to return.

    Attributes:
      indices: Indices of hidden states: 0 is the embedded input, k the output of layer
        k, -1 the last one, after the model's final norm.
      combine: "one" (a single state), "mean" or "stack" (a leading axis).
    """

    indices: tuple[int, ...] = (-1,)
    combine: str = "one"

    @property
    def is_last(self) -> bool:
        """Whether this is the model's own output only."""
        return self.combine == "one" and self.indices == (-1,)

    def __str__(self) -> str:
        numbers = ",".join(map(str, self.indices))
        return f"mean({numbers})" if self.combine == "mean" else numbers


def parse_layers(
    layers: "int | str | Sequence[int] | Layers | None", num_layers: int
) -> Layers:
    """Parses a user's choice of layers.

    Args:
      layers: A number, several (also "0,3,-1"), "all", "last4" (the mean of the last
        four), or None for the last.
      num_layers: Layers of the model; it has num_layers + 1 hidden states.

    Raises:
      ValueError: There is no such layer.
    """
    if isinstance(layers, Layers):
        return layers
    if isinstance(layers, str):
        text = layers.strip()
        if text == "last":
            layers = -1
        elif text == "all":
            layers = list(range(num_layers + 1))
        elif match := re.fullmatch(r"last([1-9]\d*)", text):
            count = int(match[1])
            _check_layers(range(-count, 0), num_layers)
            return Layers(tuple(range(-count, 0)), "mean")
        elif re.fullmatch(r"-?\d+(,-?\d+)*", text):
            several = [int(part) for part in text.split(",")]
            layers = several if "," in text else several[0]
        else:
            raise ValueError(
                f"layers={text!r} is not known. Give a number (-1 is the last), "
                "several with commas, 'all', or 'last4' for the mean of the last four."
            )
    if layers is None or isinstance(layers, numbers.Integral):
        chosen = Layers((-1 if layers is None else _layer(layers),))
    elif isinstance(layers, Iterable):
        chosen = Layers(tuple(map(_layer, layers)), "stack")
    else:
        chosen = Layers((_layer(layers),))
    _check_layers(chosen.indices, num_layers)
    # Canonical indices, so that equal choices give equal run identities.
    indices = tuple(i - num_layers - 1 if i >= 0 else i for i in chosen.indices)
    return Layers(indices, chosen.combine)


def _layer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(
            f"layers: {value!r} is not the number of a layer. Give a whole number (-1 "
            "is the last), several in a list, 'all' or 'last4'."
        )
    return int(value)


def _check_layers(indices, num_layers):
    for index in indices:
        if not -num_layers - 1 <= index <= num_layers:
            raise ValueError(
                f"layer {index}: the model has {num_layers} layers, hidden states 0 to "
                f"{num_layers} (or {-num_layers - 1} to -1)."
            )


def hidden_states(intermediates: Mapping[str, Any], last: jax.Array) -> list[jax.Array]:
    """Input of every layer in order, then the model's output.

    Args:
      intermediates: Intermediates of `encode`: each layer sows its `input`.
      last: Output of `encode`.
    """
    states: list[jax.Array] = []

    def visit(tree):
        # Several if one layer is called repeatedly (ALBERT).
        for array in tree.get("input", ()):
            # A scanned stack has its layers on the first axis.
            states.extend(array if array.ndim == last.ndim + 1 else [array])
        for name in sorted(tree, key=_natural):
            if isinstance(tree[name], Mapping):
                visit(tree[name])

    visit(intermediates)
    return [*states, last]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def choose(
    states: Sequence[Float[Array, "batch length d_model"] | None], layers: Layers
) -> Float[Array, "*layers batch length d_model"]:
    """Selects and combines hidden states; those not in `layers` may be None."""
    picked: list[Any] = [states[i] for i in layers.indices]
    if layers.combine == "one":
        return picked[0]
    stacked = jnp.stack(picked)
    if layers.combine == "stack":
        return stacked
    return stacked.astype(jnp.float32).mean(axis=0).astype(stacked.dtype)


def encode(
    module: nn.Module,
    params: types.Params,
    tokens: Int[Array | np.ndarray, "batch length"],
    mask: Bool[Array | np.ndarray, "batch length"]
    | Int[Array | np.ndarray, "batch length"],
    layers: Layers,
) -> Float[Array, "*layers batch length d_model"]:
    """Chosen hidden states of a batch; a pure function of `params`."""
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    if layers.is_last:
        last: Any = module.apply(
            {"params": params}, tokens, mask, deterministic=True, method="encode"
        )
        return last
    result: Any = module.apply(
        {"params": params},
        tokens,
        mask,
        deterministic=True,
        method="encode",
        mutable="intermediates",
    )
    output, variables = result
    return choose(hidden_states(variables["intermediates"], output), layers)


def for_shape(module: nn.Module, rows: int, length: int, platform: str) -> nn.Module:
    """The model with the fastest attention for frozen weights.

    CPU with the x86 kernel (`x86.has_attention`):
        the kernel at every length (selected by attention="blockwise")
    GPU with cuDNN's kernel (`has_fused`: from Ampere on, bfloat16), and the bias of one
    row within `PLAIN_SCORES_BYTES`, 2 GiB:
        cuDNN's kernel
    other CPU:
        plain, in parts that stay in cache; blockwise above 256 MiB of scores
    TPU, other GPU, or a longer row:
        plain, all scores at once; blockwise above 2 GiB of scores

    Scores are those of all rows and heads in float32. XLNet and Transformer-XL, which
    have no dot-product attention, use only the last two.
    """
    limit = PLAIN_SCORES_BYTES["cpu" if platform == "cpu" else "accelerator"]
    config, compute = module.config, module.compute
    if compute.attention != "plain":
        return module
    row = 4 * config.num_heads * length * length
    if module.has_dot_product_attention:
        heads = compute.dtype, config.head_dim
        if platform == "gpu" and row <= limit and softmax_attention.has_fused(*heads):
            return fused(module)
        if can_pack(module, platform):
            return blockwise(module)
    return module if rows * row <= limit else blockwise(module)


def can_pack(module: nn.Module, platform: str) -> bool:
    """Whether packing several sequences into a row adds no cost.

    True if attention computes no scores between different sequences.
    """
    heads = module.compute.dtype, module.config.head_dim
    return module.has_dot_product_attention and softmax_attention.skips_other_segments(
        platform, *heads
    )


def fused(module: nn.Module) -> nn.Module:
    """The same model with fused attention, for rows of one sequence each."""
    return _computed(module, fused_attention=True)


def blockwise(module: nn.Module) -> nn.Module:
    """The same model with attention whose memory grows with the length only."""
    return _computed(module, attention="blockwise", attention_block_size=_BLOCK)


def _computed(module: nn.Module, **changes: Any) -> nn.Module:
    return module.clone(compute=dataclasses.replace(module.compute, **changes))


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """Outputs to compute for a batch.

    Attributes:
      layers: Hidden states to return.
      pool: Name of the pooling, or None.
      keep_residues: Whether to return the hidden states themselves.
      num_prefix: Special tokens before the residues.
      num_special: Total number of special tokens of a row.
      cls: Position of [CLS] in a row: 0 is the first token, -1 the last.
    """

    layers: Layers
    pool: str | None
    keep_residues: bool
    num_prefix: int
    num_special: int
    cls: int = 0


def run(
    module: nn.Module,
    params: types.Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    spec: OutputSpec,
) -> tuple[
    Float[Array, "*layers batch length d_model"] | None,
    Float[Array, "*layers batch d_model"] | None,
]:
    """Hidden states and pooled vectors of a batch, as `spec` selects.

    Args:
      module: The model.
      params: Its parameters.
      tokens: Token ids, padded on the right.
      segments: Number of each token's sequence in its row, from 1; the tokens of a
        sequence are contiguous. 0 is padding.
      spec: Outputs to compute. Pooling assumes one sequence per row.

    Returns:
      Hidden states in the model's type or None, and pooled ones in float32 or None.
    """
    stack = layerwise.find_stack(module)
    if stack is None:
        return _whole(module, params, tokens, segments, spec)
    count = len(stack.paths)
    keep = frozenset(i % (count + 1) for i in spec.layers.indices) - {count}
    last, kept = layerwise.run_layers(stack, params, tokens, segments, keep=keep)
    outside = layerwise.outside(stack, params)
    return _end(stack, outside, tokens, segments, last, kept, spec)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _whole(module, params, tokens, segments, spec):
    with frozen.scope():
        hidden = encode(module, params, tokens, segments, spec.layers)
    return _finish(hidden, segments, spec)


# One program for all steps saves compilation time and memory.
@functools.partial(jax.jit, static_argnums=(0, 6))
def _end(stack, outside, tokens, segments, last, kept, spec):
    with frozen.scope():
        last = layerwise.after_layers(stack, outside, tokens, segments, last)
    states = [*(kept.get(i) for i in range(len(stack.paths))), last]
    return _finish(choose(states, spec.layers), segments, spec)


def _finish(hidden, segments, spec):
    pooled = None
    if spec.pool is not None:
        lengths = jnp.sum(segments != 0, axis=1)
        positions = jnp.arange(hidden.shape[-2])
        stop = lengths - spec.num_special + spec.num_prefix
        residues = (positions >= spec.num_prefix) & (positions < stop[:, None])
        first = lengths if spec.cls < 0 else jnp.zeros_like(lengths)
        cls = positions == (first + spec.cls)[:, None]
        pooled = pooling.pool(hidden, residues, cls, spec.pool)
    return (hidden if spec.keep_residues else None), pooled
