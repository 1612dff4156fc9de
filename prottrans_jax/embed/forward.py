"""One call of a model on a batch: which hidden states, pooled or not."""

from collections.abc import Iterable, Mapping, Sequence
import copy
import dataclasses
import functools
import numbers
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax import types
from prottrans_jax.embed import layerwise, pooling
from prottrans_jax.kernels import x86
from prottrans_jax.layers import attention

# Scores of all heads of a batch beyond which attention goes block by block.
PLAIN_SCORES_BYTES = {"cpu": 256 << 20, "accelerator": 2 << 30}
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Layers:
    """Which hidden states are wanted.

    Attributes:
      indices: Numbers of hidden states: 0 is the embedded input, k what layer k gives,
        -1 the last, after the model's final norm.
      combine: "one" (a single state), "mean" or "stack" (a leading axis).
    """

    indices: tuple[int, ...] = (-1,)
    combine: str = "one"

    @property
    def is_last(self) -> bool:
        """Whether only the model's own output is wanted."""
        return self.combine == "one" and self.indices == (-1,)

    def __str__(self) -> str:
        numbers = ",".join(map(str, self.indices))
        return f"mean({numbers})" if self.combine == "mean" else numbers


def parse_layers(
    layers: "int | str | Sequence[int] | Layers | None", num_layers: int
) -> Layers:
    """The choice that a user's words mean.

    Args:
      layers: A number, several (also "0,3,-1"), "all", "last4" (the mean of the last
        four), or None for the last.
      num_layers: Layers of the model, which has one hidden state more.

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
    # One spelling of each state: two runs that ask for the same are the same.
    indices = tuple(i - num_layers - 1 if i >= 0 else i for i in chosen.indices)
    return Layers(indices, chosen.combine)


def _layer(value: Any) -> int:
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
      intermediates: What `encode` sowed: each layer its `input`.
      last: What `encode` returned.
    """
    found: list[jax.Array] = []

    def visit(tree):
        # Several where one layer is called again and again (ALBERT).
        for array in tree.get("input", ()):
            # A scanned stack has its layers on the first axis.
            found.extend(array if array.ndim == last.ndim + 1 else [array])
        for name in sorted(tree, key=_natural):
            if isinstance(tree[name], Mapping):
                visit(tree[name])

    visit(intermediates)
    return [*found, last]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def choose(
    states: Sequence[Float[Array, "batch length d_model"] | None], layers: Layers
) -> Float[Array, "*layers batch length d_model"]:
    """The wanted ones of all hidden states; those that are not may be None."""
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
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
    layers: Layers,
) -> Float[Array, "*layers batch length d_model"]:
    """Chosen hidden states of a batch; a pure function of `params`."""
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
    """The model with the attention that is best for frozen models.

    Where plain attention is configured, that is a GPU's fused kernel, as long as one
    row's bias for all pairs would not be too much; `x86.attention`, at every length,
    which takes blockwise attention's place; or blockwise attention where all scores at
    once are too much.
    """
    limit = PLAIN_SCORES_BYTES["cpu" if platform == "cpu" else "accelerator"]
    config = module.config
    if getattr(config, "attention", "") != "plain":
        return module
    row = 4 * config.num_heads * length * length
    if hasattr(config, "flash"):
        heads = config.dtype, config.head_dim
        if platform == "gpu" and row <= limit and attention.has_flash(*heads):
            return flash(module)
        if can_pack(module, platform):
            return blockwise(module)
    return module if rows * row <= limit else blockwise(module)


def can_pack(module: nn.Module, platform: str) -> bool:
    """Whether several sequences in a row cost what they do in rows of their own.

    With `x86.attention`, which computes nothing between them.
    """
    config = module.config
    return (
        platform == "cpu"
        and hasattr(config, "flash")
        and x86.has_attention(config.dtype, config.head_dim)
    )


def flash(module: nn.Module) -> nn.Module:
    """The same model with fused attention, for rows of one sequence each."""
    config = copy.copy(module.config)
    # Past the constructor: whoever packs rows must not have it by a setting.
    object.__setattr__(config, "flash", True)
    return module.clone(config=config)


def blockwise(module: nn.Module) -> nn.Module:
    """The same model with attention whose memory grows with the length only."""
    config = dataclasses.replace(
        module.config, attention="blockwise", attention_block_size=_BLOCK
    )
    return module.clone(config=config)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is made of a batch.

    Attributes:
      layers: Which hidden states.
      pool: Pooling by name, or None.
      keep_residues: Whether the hidden states themselves are given.
      num_prefix: Special tokens before the residues.
      num_special: Special tokens of a row in all.
      cls: Where a row's [CLS] is: 0 is its first token, -1 its last.
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
    wanted: Wanted,
) -> tuple[
    Float[Array, "*layers batch length d_model"] | None,
    Float[Array, "*layers batch d_model"] | None,
]:
    """Hidden states and pooled vectors of a batch, whichever are wanted.

    Args:
      module: The model.
      params: Its parameters.
      tokens: Token ids, padded on the right.
      segments: Sequence of each token in its row, from 1, its tokens side by side; 0 is
        padding.
      wanted: What to make of it. Pooling takes a row for one sequence.

    Returns:
      Hidden states in the model's type or None, and pooled ones in float32 or None.
    """
    stack = layerwise.find_stack(module)
    if stack is None:
        return _whole(module, params, tokens, segments, wanted)
    count = len(stack.paths)
    keep = frozenset(i % (count + 1) for i in wanted.layers.indices) - {count}
    last, kept = layerwise.run_layers(stack, params, tokens, segments, keep=keep)
    outside = layerwise.outside(stack, params)
    return _end(stack, outside, tokens, segments, last, kept, wanted)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _whole(module, params, tokens, segments, wanted):
    with x86.enabled(x86.extent_of(segments)):
        hidden = encode(module, params, tokens, segments, wanted.layers)
    return _finish(hidden, segments, wanted)


# One program, not one for each step: a shape costs less time and memory.
@functools.partial(jax.jit, static_argnums=(0, 6))
def _end(stack, outside, tokens, segments, last, kept, wanted):
    with x86.enabled(x86.extent_of(segments)):
        last = layerwise.after_layers(stack, outside, tokens, segments, last)
    states = [*(kept.get(i) for i in range(len(stack.paths))), last]
    return _finish(choose(states, wanted.layers), segments, wanted)


def _finish(hidden, segments, wanted):
    pooled = None
    if wanted.pool is not None:
        lengths = jnp.sum(segments != 0, axis=1)
        positions = jnp.arange(hidden.shape[-2])
        stop = lengths - wanted.num_special + wanted.num_prefix
        residues = (positions >= wanted.num_prefix) & (positions < stop[:, None])
        first = lengths if wanted.cls < 0 else jnp.zeros_like(lengths)
        cls = positions == (first + wanted.cls)[:, None]
        pooled = pooling.pool(hidden, residues, cls, wanted.pool)
    return (hidden if wanted.keep_residues else None), pooled
