"""The loop over tokens: one compiled program for a batch of rows.

Rows end independently; the loop ends with the last of them. A row's draws depend on its
key and on the position alone, so the batch that it is in does not change them.
"""

import dataclasses
import functools
from typing import Protocol

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from prottrans_jax import types
from prottrans_jax.generation import sampling


class Decoding(Protocol):
    """A model that computes the logits of one token after another.

    Its `start` has inputs of the family, and returns the logits of the first token and
    a cache.
    """

    def step(
        self, tokens: Int[Array, " batch"], cache: PyTree
    ) -> tuple[Float[Array, "batch vocab"], PyTree]:
        """Logits of the next token, and the cache with `tokens` added."""


@struct.dataclass
class Rows:
    """What is known of the rows of a batch before the loop.

    Attributes:
      history: Tokens of the prompt, padded on the left with `sampling.NO_TOKEN`.
      forced: Tokens that are given; `sampling.NO_TOKEN` where one is to be sampled.
      min_length: Number of tokens before which the row does not end.
      max_length: Number of tokens at which the row ends.
      keys: Key of each row.
      allowed: Tokens that may be sampled, except `end`.
      end: Token that ends a row; `sampling.NO_TOKEN` if the model has none.
    """

    history: Int[Array, "batch prompt"]
    forced: Int[Array, "batch slots"]
    min_length: Int[Array, " batch"]
    max_length: Int[Array, " batch"]
    keys: Key[Array, " batch"]
    allowed: Bool[Array, " vocab"]
    end: Int[Array, ""]


@struct.dataclass
class Decoded:
    """What the loop made.

    Attributes:
      tokens: Tokens after the prompt, without `end`.
      length: Number of tokens of each row.
      ended: Whether the model ended the row, before `max_length`.
      log_likelihood: Sum of log p of all sampled tokens, `end` included, as the model
        gives them: over all tokens, without temperature and filters. In nats.
      num_sampled: Number of sampled tokens, `end` included.
    """

    tokens: Int[Array, "batch slots"]
    length: Int[Array, " batch"]
    ended: Bool[Array, " batch"]
    log_likelihood: Float[Array, " batch"]
    num_sampled: Int[Array, " batch"]


@struct.dataclass
class _State:
    position: Int[Array, ""]
    logits: Float[Array, "batch vocab"]
    cache: PyTree
    history: Int[Array, "batch history"]
    is_done: Bool[Array, " batch"]
    out: Decoded


@functools.partial(jax.jit, static_argnames=("module", "settings"))
def decode(
    module: nn.Module,
    settings: sampling.Sampling,
    params: types.Params,
    start: tuple[jax.Array, ...],
    rows: Rows,
) -> Decoded:
    """Decodes a batch.

    Args:
      module: Linen module of the protocol `Decoding`.
      settings: How tokens are chosen.
      params: Parameters of `module`.
      start: Arrays for its `start`; the number of slots is added.
      rows: The rows.
    """
    variables = {"params": params}
    batch, slots = rows.forced.shape
    prompt = rows.history.shape[1]
    # Prompts of XLNet and Transformer-XL have slots too, and so has the last token,
    # although its logits are not used.
    logits, cache = module.apply(variables, *start, prompt + slots + 1, method="start")
    history = jnp.pad(
        rows.history, ((0, 0), (0, slots)), constant_values=sampling.NO_TOKEN
    )
    none = jnp.zeros(batch, jnp.int32)
    state = _State(
        position=jnp.int32(0),
        logits=logits,
        cache=cache,
        history=history,
        is_done=rows.max_length == 0,
        out=Decoded(
            tokens=jnp.zeros((batch, slots), jnp.int32),
            length=none,
            ended=jnp.zeros(batch, bool),
            log_likelihood=jnp.zeros(batch, jnp.float32),
            num_sampled=none,
        ),
    )

    def step(state: _State) -> _State:
        state, tokens = _add_tokens(settings, rows, prompt, state)
        logits, cache = module.apply(variables, tokens, state.cache, method="step")
        return dataclasses.replace(state, logits=logits, cache=cache)

    return jax.lax.while_loop(lambda x: ~jnp.all(x.is_done), step, state).out


def _add_tokens(settings, rows: Rows, prompt: int, state: _State):
    position, out = state.position, state.out
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, position)
    may_end = (position >= rows.min_length)[:, None]
    is_end = jnp.arange(len(rows.allowed)) == rows.end
    allowed = rows.allowed | (may_end & is_end)
    sampled = sampling.choose(
        settings, state.logits, allowed, state.history, prompt + position, keys
    )
    forced = jax.lax.dynamic_index_in_dim(rows.forced, position, 1, keepdims=False)
    is_sampled = ~state.is_done & (forced == sampling.NO_TOKEN)
    tokens = jnp.where(forced == sampling.NO_TOKEN, sampled, forced)

    log_probs = jax.nn.log_softmax(state.logits, axis=-1)
    log_prob = jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]
    ends = is_sampled & (tokens == rows.end)
    is_added = ~state.is_done & ~ends
    tokens = jnp.where(is_added, tokens, 0)
    length = out.length + is_added
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=1)
    out = Decoded(
        tokens=put(out.tokens, tokens, position),
        length=length,
        ended=out.ended | ends,
        log_likelihood=out.log_likelihood + jnp.where(is_sampled, log_prob, 0.0),
        num_sampled=out.num_sampled + is_sampled,
    )
    state = dataclasses.replace(
        state,
        position=position + 1,
        history=put(state.history, tokens, prompt + position),
        is_done=state.is_done | ends | (length >= rows.max_length),
        out=out,
    )
    return state, tokens
