"""Attention with relative positions and memories, for Transformer-XL and XLNet.

The score of query i on key j, at distance d = position of i - position of j, is
  ((q_i + u) k_j + (q_i + v) r_d + (q_i + w) s_ij) / sqrt(head_dim)
(Dai et al. 2019, section 3.3; the last term Yang et al. 2019, section 2.5). r_d is a
projected sinusoid; u, v, w are vectors per head that do not depend on the query; s_ij
is one of two vectors, for tokens of the same and of different types.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
from flax import struct
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax.kernels import products, softmax_attention
from prottrans_jax.layers import attention, dense

# Queries whose scores by distance are computed together: the largest divisor is used.
BLOCK_SIZES = (128, 64, 32)
# Smallest number of queries in a block of blockwise attention.
MIN_BLOCK = 32


def distances(
    q_length: int, kv_length: int, *, causal: bool
) -> Int[np.ndarray, " distances"]:
    """Distances from the farthest key before a query to the farthest after it.

    The last query is aligned with the last key: with memories there are more keys than
    queries. If `causal`, distances stop at 0. The first distance, kv_length, does not
    occur; with it `shift` needs no padding.
    """
    return np.arange(kv_length, -1 if causal else -q_length, -1)


def frequencies(d_model: int) -> Float[np.ndarray, " half_d_model"]:
    """Angular frequencies of the sinusoids, in radians per position, float32.

    Raises:
      ValueError: `d_model` is odd.
    """
    if d_model % 2:
        raise ValueError(
            f"d_model={d_model}: sines and cosines need an even number of features."
        )
    return 10000.0 ** (-np.arange(0, d_model, 2, dtype=np.float32) / d_model)


def position_encoding(
    distance: Int[np.ndarray, " distances"],
    d_model: int,
    stored: Sequence[float] | None = None,
) -> Float[Array, "distances d_model"]:
    """Sinusoids, all sines first, then all cosines (Vaswani et al. 2017, reordered).

    Args:
      distance: Positions from key to query.
      d_model: Number of features.
      stored: Frequencies from a checkpoint; None: `frequencies(d_model)`.

    Raises:
      ValueError: `d_model` is odd.
    """
    frequency = frequencies(d_model)
    if stored is not None:
        frequency = np.asarray(stored, np.float32)
    # Computed on the device in float32: as constants, tables for 2,000 positions would
    # enlarge the compiled step by megabytes.
    angle = jnp.asarray(distance, jnp.float32)[:, None] * jnp.asarray(frequency)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def mirror(
    encoding: Float[Array, "distances d_model"],
) -> Float[Array, "distances d_model"]:
    """Encoding of the negated distances, for rows that are read backward."""
    sine, cosine = jnp.split(encoding, 2, axis=-1)
    return jnp.concatenate([-sine, cosine], axis=-1)


def shift(
    scores: Float[Array, "*rows q_length distances"], kv_length: int
) -> Float[Array, "*rows q_length kv_length"]:
    """Converts scores by distance, in the order of `distances`, to scores by key.

    Row i starts at distance index q_length - i. Reshaping the flat array to rows one
    shorter does that without a gather (Dai et al. 2019, appendix B). Keys at distances
    that are not listed get undefined values.
    """
    *rows, q_length, width = scores.shape
    flat = scores.reshape(*rows, q_length * width)[..., q_length:]
    return flat.reshape(*rows, q_length, width - 1)[..., :kv_length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shift_rows(
    scores: Float[Array, "batch heads queries distances"],
    starts: Int[Array, "batch queries"],
    kv_length: int,
) -> Float[Array, "batch heads queries kv_length"]:
    """As `shift`, for queries at any position: row i starts at index `starts[:, i]`.

    Forward and backward passes are slices; JAX's own derivative would be a scatter.
    """
    return _slice_rows(scores, starts, kv_length)


def _shift_rows_fwd(scores, starts, kv_length):
    return _slice_rows(scores, starts, kv_length), (starts, scores.shape[-1])


def _shift_rows_bwd(kv_length, residuals, grad):
    starts, width = residuals
    # The gradient of distance k is that of key k - start, if that key exists.
    padded = jnp.pad(grad, ((0, 0),) * 3 + ((width, width),))
    return _slice_rows(padded, width - starts, width), None


def _slice_rows(x, starts, size):
    def one(row, start):  # [width], []
        return jax.lax.dynamic_slice_in_dim(row, start, size)

    over_queries = jax.vmap(one)
    over_heads = jax.vmap(over_queries, in_axes=(0, None))
    return jax.vmap(over_heads)(x, starts)


shift_rows.defvjp(_shift_rows_fwd, _shift_rows_bwd)


@struct.dataclass
class Surroundings:
    """Inputs of attention that all layers share.

    The first queries are aligned with the last keys, in order. They are followed by one
    query for each of `positions`, which may be anywhere (XLNet's query stream).

    Attributes:
      mask: Whether a query may attend to a key.
      encoding: Encoding of `distances`; two encodings if the second half of the rows is
        read backward.
      positions: For each further query, the index of the first query at the same
        position; -1 if the query is masked completely.
      other_type: Whether query and key are tokens of different types; None omits the
        term of the token types.
      segments: 0 at queries that are padding; None: none is, or that is not known.
    """

    mask: Bool[Array, "batch q_length kv_length"]
    encoding: Float[Array, "directions distances d_model"]
    positions: Int[Array, "batch further"] | None = None
    other_type: Bool[Array, "batch q_length kv_length"] | None = None
    segments: Int[Array, "batch q_length"] | None = None


@struct.dataclass
class GlobalBiases:
    """u and v of the score, if all layers share them."""

    content: Float[Array, "heads head_dim"]
    position: Float[Array, "heads head_dim"]


def global_biases(
    module: nn.Module, num_heads: int, head_dim: int, param_dtype: DTypeLike
) -> GlobalBiases:
    """Creates u and v as parameters of `module`; call it in a compact method."""
    return GlobalBiases(
        *(
            _head_vectors(module, name, (num_heads, head_dim), param_dtype)
            for name in ("content_bias", "position_bias")
        )
    )


def _head_vectors(module, name, shape, param_dtype):
    axes = (*(("token_types",) if len(shape) == 3 else ()), "heads", "kv")
    initializer = nn.initializers.normal(stddev=0.02)
    return jnp.asarray(
        module.param(
            name,
            nn.with_logical_partitioning(initializer, axes),
            shape,
            jnp.dtype(param_dtype),
        )
    )


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions; projections without biases.

    Dropout on the attention weights uses one mask for all queries of a row. That is
    equivalent to dropout on values, so it needs no array of the size of the scores.
    (The original draws a mask for each weight.)

    Attributes:
      num_heads: Number of heads.
      head_dim: Size of a head; num_heads * head_dim need not be d_model.
      dropout_rate: Dropout rate of the attention weights.
      deterministic: Whether dropout is off.
      token_types: Whether there is a term for token types.
      block_size: None computes all scores at once. A number iterates over blocks of
        queries, each against all keys, of about block_size^2 scores. Memory is then
        linear in the length, except for one byte of mask per pair.
      kernel_init: Initialiser of all kernels.
      dtype: Type of the products and of the result.
      param_dtype: Type of the parameters.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    deterministic: bool
    token_types: bool = False
    block_size: int | None = None
    kernel_init: dense.Initializer = nn.initializers.normal(stddev=0.02)
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch q_length d_model"],
        context: Float[Array, "batch kv_length d_model"],
        surroundings: Surroundings,
        biases: GlobalBiases | None = None,
    ) -> Float[Array, "batch q_length d_model"]:
        """Queries from `x`; keys and values from `context`, memories before it.

        Args:
          x: Inputs of the queries; the first ones are the last of `context`.
          context: Inputs of keys and values.
          surroundings: Mask, positions and token types, the same for all layers.
          biases: u and v if all layers share them; None creates this layer's own.

        Raises:
          ValueError: `block_size` is set, and there are further queries.
        """
        project = functools.partial(
            dense.Dense,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        q_segments = surroundings.segments
        # With memories the context is longer.
        kv_segments = q_segments if context.shape == x.shape else None

        def heads(x, name, segments=None):
            # [batch, length, d_model] -> [batch, length, heads, head_dim]
            features = self.num_heads * self.head_dim
            x = project(features, ("embed", "joined_kv"), name=name)(
                x, segments=segments
            )
            if name != "position":
                x = ad_checkpoint.checkpoint_name(x, name)
            return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

        axes = ("batch", "length", "heads", "kv")
        query = nn.with_logical_constraint(heads(x, "query", q_segments), axes)
        key = nn.with_logical_constraint(heads(context, "key", kv_segments), axes)
        value = nn.with_logical_constraint(heads(context, "value", kv_segments), axes)
        position = heads(surroundings.encoding.astype(self.dtype), "position")

        if biases is None:
            biases = global_biases(
                self, self.num_heads, self.head_dim, self.param_dtype
            )
        scale = self.head_dim**-0.5

        def biased(vector):
            return ((query.astype(jnp.float32) + vector) * scale).astype(query.dtype)

        by_type = type_embedding = None
        if self.token_types:
            # Created even if this call omits the term.
            vectors = [
                _head_vectors(self, name, shape, self.param_dtype)
                for name, shape in (
                    ("type_bias", (self.num_heads, self.head_dim)),
                    ("type_embedding", (2, self.num_heads, self.head_dim)),
                )
            ]
            if surroundings.other_type is not None:
                by_type, type_embedding = biased(vectors[0]), vectors[1]
        value = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))(
            value, deterministic=self.deterministic
        )
        attend = _attend
        if self.block_size is not None:
            attend = functools.partial(_attend_by_blocks, self.block_size)
        queries = _Queries(biased(biases.content), biased(biases.position), by_type)
        out = attend(queries, key, value, position, type_embedding, surroundings)
        # [batch, length, heads, head_dim] -> [batch, length, heads * head_dim]
        out = out.reshape(*out.shape[:2], -1)
        out = project(x.shape[-1], ("joined_kv", "embed"), name="out")(
            out, segments=q_segments
        )
        return ad_checkpoint.checkpoint_name(out, "attention_out")


@struct.dataclass
class _Queries:
    """Queries of each term of the score, [batch, q_length, heads, head_dim]."""

    content: jax.Array
    position: jax.Array
    type: jax.Array | None


def _attend(queries, key, value, position, type_embedding, surroundings):
    scores = _position_scores(queries.position, position, surroundings)
    if queries.type is not None:
        scores += _type_scores(queries.type, type_embedding, surroundings.other_type)
    scores = jnp.where(surroundings.mask[:, None], scores, softmax_attention.MASKED)
    scores = nn.with_logical_constraint(
        scores, ("batch", "heads", "length", "kv_length")
    )
    return attention.dot_product_attention(
        queries.content, key, value, q_segments=None, kv_segments=None, bias=scores
    )


def _attend_by_blocks(
    block_size, queries, key, value, position, type_embedding, surroundings
):
    if surroundings.positions is not None:
        raise ValueError(
            "Blockwise attention does not support further queries: training on a "
            "permuted order (XLNet's targets) needs attention='plain'."
        )
    batch, length = queries.content.shape[:2]
    kv_length = key.shape[1]
    size = min(length, max(MIN_BLOCK, block_size**2 // kv_length))
    padding = -length % size
    padded = length + padding

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))

    rows = jax.tree.map(pad, (queries, surroundings.mask, surroundings.other_type))
    # A causal encoding ends at distance 0; keys beyond it are masked.
    missing = max(0, length + kv_length - position.shape[1])
    position = jnp.pad(position, ((0, 0), (padding, missing), (0, 0), (0, 0)))

    # The scores of a block are recomputed in the backward pass, not saved.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(start):
        queries, mask, other_type = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), rows
        )
        # Row i of all rows starts at distance index padded - i; see `shift`.
        window = jax.lax.dynamic_slice_in_dim(
            position, padded - start - size, size + kv_length, 1
        )
        # `segments` are those of all queries, and projections alone use them.
        own = surroundings.replace(mask=mask, other_type=other_type, segments=None)
        return _attend(queries, key, value, window, type_embedding, own)

    out = jax.lax.map(block, jnp.arange(0, padded, size))
    # [blocks, batch, size, heads, head_dim] -> [batch, length, heads, head_dim]
    out = jnp.moveaxis(out, 0, 1).reshape(batch, padded, *out.shape[3:])
    return out[:, :length]


def _position_scores(query, position, surroundings):
    """The second term of the score, [batch, heads, q_length, kv_length], float32."""
    parts = len(position)
    if query.shape[0] % parts:
        raise ValueError(
            f"The batch has {query.shape[0]} rows, but with bi_data=True the second "
            "half is read backward: use an even number of rows."
        )
    rows = query.shape[0] // parts
    return jnp.concatenate(
        [
            _scores_of_rows(
                query[part * rows : (part + 1) * rows],
                position[part],
                surroundings.mask.shape[-1],
                None
                if surroundings.positions is None
                else surroundings.positions[part * rows : (part + 1) * rows],
            )
            for part in range(parts)
        ]
    )


def _scores_of_rows(query, position, kv_length, positions):
    if positions is None:
        return _scores_in_order(query, position, kv_length)
    length = query.shape[1] - positions.shape[1]
    first = _scores_in_order(query[:, :length], position, kv_length)
    further = products.einsum(
        "bqhd,khd->hbqk", query[:, length:], position, query.dtype, jnp.float32
    )
    further = jnp.swapaxes(further, 0, 1)
    # A causal encoding ends at distance 0; keys beyond it are masked.
    missing = max(0, length + kv_length - further.shape[-1])
    further = jnp.pad(further, ((0, 0),) * 3 + ((0, missing),))
    starts = length - jnp.maximum(positions, 0)
    further = shift_rows(further, starts, kv_length)
    return jnp.concatenate([first, further], axis=2)


def _scores_in_order(query, position, kv_length):
    batch, length, heads, _ = query.shape
    # A block of queries needs only the distances around it: for rows of 512, 640 of
    # 1,024 distances are multiplied and shifted.
    sizes = [x for x in BLOCK_SIZES if length % x == 0]
    causal = len(position) <= kv_length + 1
    size = length if causal or not sizes else sizes[0]
    windows = jnp.stack(
        [
            position[start : start + size + kv_length]
            for start in range(length - size, -1, -size)
        ]
    )
    query = query.reshape(batch, len(windows), size, *query.shape[2:])
    # Blocks and heads first: the product then has one batch axis, and its result needs
    # no transpose before the shift.
    scores = products.einsum(
        "bnqhd,nkhd->nhbqk", query, windows, query.dtype, jnp.float32
    )
    scores = shift(scores, kv_length)
    # [blocks, heads, batch, size, kv_length] -> [batch, heads, length, kv_length]
    return (
        jnp.moveaxis(scores, 0, 2)
        .swapaxes(0, 1)
        .reshape(batch, heads, length, kv_length)
    )


def _type_scores(query, type_embedding, other_type):
    """The third term of the score, [batch, heads, q_length, kv_length], float32."""
    by_type = products.einsum(
        "bqhd,thd->hbqt", query, type_embedding, query.dtype, jnp.float32
    )
    by_type = jnp.swapaxes(by_type, 0, 1)[..., None, :]
    return jnp.where(other_type[:, None], by_type[..., 1], by_type[..., 0])


def visible(
    q_segments: Int[Array, "batch q_length"],
    memory_segments: Int[Array, "batch mem_length"] | None,
    mem_length: int,
) -> Bool[Array, "batch q_length kv_length"]:
    """Which keys belong to a query's protein; the keys are memories, then the row.

    Args:
      q_segments: Segment of each position, 0 for padding.
      memory_segments: Segment of each memory, 0 for an empty slot. None: every memory
        belongs to every protein, as in the original implementations.
      mem_length: Number of memories.
    """
    mask = softmax_attention.make_mask(q_segments, q_segments)[:, 0]
    if not mem_length:
        return mask
    if memory_segments is None:
        memory = jnp.ones((*q_segments.shape, mem_length), bool)
    else:
        memory = softmax_attention.make_mask(q_segments, memory_segments)[:, 0]
    return jnp.concatenate([memory, mask], axis=-1)


def within(
    q_length: int, kv_length: int, max_distance: int | None
) -> Bool[np.ndarray, "q_length kv_length"]:
    """Causal mask: keys not after the query and at most `max_distance` before it."""
    distance = np.arange(kv_length - q_length, kv_length)[:, None]
    distance = distance - np.arange(kv_length)[None]
    mask = distance >= 0
    return mask if max_distance is None else mask & (distance <= max_distance)


def remember(
    memory: Float[Array, "batch mem_length d_model"],
    x: Float[Array, "batch length d_model"],
    mem_length: int,
) -> Float[Array, "batch new_length d_model"]:
    """The last `mem_length` positions of memory and `x`, with gradients stopped."""
    joined = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
    return jax.lax.stop_gradient(joined[:, max(0, joined.shape[1] - mem_length) :])
