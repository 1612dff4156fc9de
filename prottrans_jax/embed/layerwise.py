"""A model run layer by layer: one compiled layer, called once per layer.

A stack written out compiles 24 times as long as one layer, for each shape, and XLA:CPU
runs it slower (ProtBert's 30 layers three to five times, 8 layers of ProtT5 by a
tenth); a scan copies each layer's weights. So the model is taken apart where
`layers.stack` calls its layers:

  before   everything up to the first layer: embeddings, masks, biases
  layer    one program for all layers, with each layer's parameters in turn
  after    everything behind the last one, in one program with what is made of it

Nothing about a family is known here: Flax's interceptors see the calls.
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
from prottrans_jax.kernels import x86
from prottrans_jax.layers import stack as layer_stack

_ROW = jax.ShapeDtypeStruct((1, 8), jnp.int32)
_LAYER = re.compile(r"layer(s_\d+)?")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Where a model's layers are, and what goes into them.

    Attributes:
      module: The whole model.
      layer: The layer, free of its place in the model.
      paths: Path of each call's parameters.
      pattern: For each call, which of the different arrays are its arguments besides
        the one that goes from layer to layer.
    """

    module: nn.Module
    layer: nn.Module
    paths: tuple[tuple[str, ...], ...]
    pattern: tuple[tuple[int, ...], ...]


class _Reached(Exception):
    """Thrown at the last layer: what stands behind it is not traced."""


@functools.lru_cache(maxsize=64)
def find_stack(module: nn.Module) -> Stack | None:
    """The stack of a model whose layers differ in nothing but parameters, or None."""
    if getattr(module.config, "scan_layers", True):
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
    """Shapes of the parameters that `encode` needs, without decoder and heads."""

    def init(module):
        row = jnp.zeros(_ROW.shape, _ROW.dtype)
        variables = module.init(
            jax.random.key(0), row, row, deterministic=True, method="encode"
        )
        return nn.unbox(variables["params"])

    if getattr(module.config, "scan_layers", True):
        return jax.eval_shape(lambda: init(module))
    return layer_stack.written_out_shapes(
        lambda scanned: init(module.clone(config=scanned)), module.config
    )


def run_layers(
    stack: Stack,
    params: types.Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    *,
    keep: frozenset[int] = frozenset(),
) -> tuple[Float[Array, "batch length d_model"], dict[int, jax.Array]]:
    """What the last layer gives, and the inputs of the layers in `keep`."""
    segments = jnp.asarray(segments)  # Once, for all layers.
    x, arguments, others = _before(stack, outside(stack, params), tokens, segments)
    # Not as `find_stack` saw it: a bias of distances knows its length.
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
            segments,
        )
    return x, kept


def after_layers(
    stack: Stack,
    params: types.Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    x: Float[Array, "batch length d_model"],
) -> Float[Array, "batch length d_model"]:
    """What the model's `encode` gives, from what its last layer gave.

    Not compiled here, for whoever goes on with the result. `params` are needed as
    `outside` gives them.
    """
    return _with_layers(stack.module, params, tokens, segments, lambda *_: x)


def outside(stack: Stack, params: types.Params) -> types.Params:
    """Parameters without those of the layers."""
    return _without(params, frozenset(stack.paths), ())


@functools.partial(jax.jit, static_argnums=0)
def _before(stack, params, tokens, segments):
    """What goes into the first layer, its other arguments, and the arrays of others."""
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
        with x86.enabled(x86.extent_of(segments)):
            _with_layers(stack.module, params, tokens, segments, note)
    except _Reached:
        pass
    others = {i: x for i, x in arrays.items() if i not in stack.pattern[0]}
    return *calls[0], others


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_layer(layer, structure, params, x, arrays, segments):
    args, keywords = jax.tree.unflatten(structure, arrays)
    with x86.enabled(x86.extent_of(segments)):
        return layer.apply({"params": params}, x, *args, **keywords)[0]


def _with_layers(module, params, tokens, segments, layer):
    """`encode` with `layer(context, args, keywords)` in the place of each layer."""

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
