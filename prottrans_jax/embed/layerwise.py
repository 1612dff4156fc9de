"""Runs a model layer by layer, with one compiled program for all layers.

For each shape, an unrolled stack takes 24 times as long to compile as one layer, and
XLA:CPU runs it slower (ProtBert's 30 layers by a factor of three to five, 8 layers of
ProtT5 by 10 %); a scan copies each layer's weights. So the model is split where
`layers.stack` calls its layers:

  before   everything up to the first layer: embeddings, masks, biases
  layer    one program for all layers, called with each layer's parameters
  after    everything after the last layer, in one program with selection and pooling

This works for every family: Flax's interceptors intercept the calls of the layers.
"""

import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks
from prottrans_jax.kernels import frozen

_ROW = jax.ShapeDtypeStruct((1, 8), jnp.int32)
_LAYER = re.compile(r"layer(s_\d+)?")


@dataclasses.dataclass(frozen=True)
class Stack:
    """The layers of a model, and the arguments of their calls.

    Attributes:
      module: The whole model.
      layer: One layer, detached from the model.
      paths: Path of the parameters, per call.
      pattern: Per call, indices of its arguments except the hidden state; equal indices
        mean the same array.
    """

    module: nn.Module
    layer: nn.Module
    paths: tuple[tuple[str, ...], ...]
    pattern: tuple[tuple[int, ...], ...]


class _Reached(Exception):
    """Raised at the last layer, so that the rest of the model is not traced."""


@functools.lru_cache(maxsize=64)
def find_stack(module: nn.Module) -> Stack | None:
    """The stack of a model whose layers differ only in parameters, else None."""
    if module.compute.scan_layers:
        return None
    calls: list[tuple[Any, tuple, Any]] = []

    def note(context, args, keywords):
        layer = context.module.clone(parent=None, name=None)
        calls.append((layer, context.module.path, (args[1:], keywords)))
        return args[0]

    jax.eval_shape(
        lambda p, t: _with_layers(module, p, t, t, note), encoder_shapes(module), _ROW
    )
    if not calls or any(layer != calls[0][0] for layer, _, _ in calls):
        return None
    flat: list[tuple[list[Any], Any]] = [
        jax.tree.flatten(arguments) for _, _, arguments in calls
    ]
    if any(structure != flat[0][1] for _, structure in flat):
        return None
    numbers: dict[int, int] = {}
    pattern = tuple(
        tuple(numbers.setdefault(id(leaf), len(numbers)) for leaf in leaves)
        for leaves, _ in flat
    )
    paths = tuple(path for _, path, _ in calls)
    return Stack(module, calls[0][0], paths, pattern)


def encoder_shapes(module: nn.Module) -> types.Params:
    """Shapes of the parameters of `encode`, without decoder and heads."""

    def init(module):
        row = jnp.zeros(_ROW.shape, _ROW.dtype)
        variables = module.init(
            jax.random.key(0), row, row, deterministic=True, method="encode"
        )
        return nn.unbox(variables["params"])

    if module.compute.scan_layers:
        return jax.eval_shape(lambda: init(module))
    return layer_stacks.written_out_shapes(
        lambda scanned: init(module.clone(compute=scanned)), module.compute
    )


def run_layers(
    stack: Stack,
    params: types.Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    *,
    keep: frozenset[int] = frozenset(),
) -> tuple[Float[Array, "batch length d_model"], dict[int, jax.Array]]:
    """Output of the last layer, and the inputs of the layers in `keep`."""
    segments = jnp.asarray(segments)  # Converted once for all layers.
    x, arguments, others = _before(stack, outside(stack, params), tokens, segments)
    # Differs from `find_stack`'s structure: a relative position bias stores its length.
    leaves, structure = jax.tree.flatten(arguments)
    arrays = others | dict(zip(stack.pattern[0], leaves, strict=True))
    kept = {}
    for number, (path, pattern) in enumerate(
        zip(stack.paths, stack.pattern, strict=True)
    ):
        if number in keep:
            kept[number] = x
        layer_params = functools.reduce(lambda tree, name: tree[name], path, params)
        x = _one_layer(
            stack.layer,
            structure,
            layer_params,
            x,
            [arrays[i] for i in pattern],
        )
    return x, kept


def after_layers(
    stack: Stack,
    params: types.Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    x: Float[Array, "batch length d_model"],
) -> Float[Array, "batch length d_model"]:
    """Output of the model's `encode`, from the output of its last layer.

    Not jitted here, so that callers compile it together with what follows. `params` are
    those from `outside`.
    """
    return _with_layers(stack.module, params, tokens, segments, lambda *_: x)


def outside(stack: Stack, params: types.Params) -> types.Params:
    """Parameters of the model outside its layers."""
    return _without(params, frozenset(stack.paths), ())


@functools.partial(jax.jit, static_argnums=0)
def _before(stack, params, tokens, segments):
    """Hidden state and arguments of the first layer, and other layers' arguments."""
    calls: list[tuple[Any, Any]] = []
    arrays: dict[int, Any] = {}
    patterns = iter(stack.pattern)

    def note(context, args, keywords):
        arguments = args[1:], keywords
        arrays.update(zip(next(patterns), jax.tree.leaves(arguments), strict=True))
        calls.append((args[0], arguments))
        if len(calls) == len(stack.paths):
            raise _Reached
        return args[0]

    try:
        with frozen.scope():
            _with_layers(stack.module, params, tokens, segments, note)
    except _Reached:
        pass
    others = {i: x for i, x in arrays.items() if i not in stack.pattern[0]}
    return *calls[0], others


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_layer(layer, structure, params, x, arrays):
    args, keywords = jax.tree.unflatten(structure, arrays)
    with frozen.scope():
        return layer.apply({"params": params}, x, *args, **keywords)[0]


def _with_layers(module, params, tokens, segments, layer):
    """Runs `encode`, calling `layer(context, args, keywords)` instead of each layer."""

    def intercept(next_function, args, keywords, context):
        name = context.module.name
        if context.method_name == "__call__" and _LAYER.fullmatch(name or ""):
            return layer(context, args, keywords), None
        return next_function(*args, **keywords)

    with nn.intercept_methods(intercept):
        return module.apply(
            {"params": params}, tokens, segments, deterministic=True, method="encode"
        )


def _without(params, paths, here):
    if not isinstance(params, dict):
        return params
    return {
        name: _without(value, paths, (*here, name))
        for name, value in params.items()
        if (*here, name) not in paths
    }
