"""Dot-product attention: one function for padding, segments, causality and bias.

`attention` chooses between the compiled kernels for x86 CPUs (`x86`), forms that
XLA:CPU runs at full speed, cuDNN's fused kernel, blocks, and all scores at once.
"""

from collections.abc import Callable
import functools

from absl import logging
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax.kernels import distance_bias, products, x86

# Finite, so that a query with nothing to attend to gives no NaN.
MASKED = -1e30

# Inference on a CPU: float32 scores of a batch up to the first size are computed all at
# once, larger ones in parts up to the second size, which stay in cache.
FEW_SCORES_BYTES, CACHED_SCORES_BYTES = 12 << 20, 4 << 20

# Argument `implementation` of `jax.nn.dot_product_attention`.
FUSED_IMPLEMENTATION = "cudnn"

Bias = distance_bias.DistanceBias | jax.Array


def make_mask(
    q_segments: Int[Array, "batch q_length"],
    kv_segments: Int[Array, "batch kv_length"],
    *,
    causal: bool = False,
    q_start: int | Int[Array, ""] = 0,
    kv_start: int | Int[Array, ""] = 0,
) -> Bool[Array, "batch 1 q_length kv_length"]:
    """Attention mask: only within a segment, never to padding (segment 0).

    Two proteins of 3 and 2 residues and one pad, segments 1 1 1 2 2 0; `causal` removes
    the upper triangle (queries down, keys across):

        1 1 1 . . .      1 . . . . .
        1 1 1 . . .      1 1 . . . .
        1 1 1 . . .      1 1 1 . . .
        . . . 1 1 .      . . . 1 . .
        . . . 1 1 .      . . . 1 1 .
        . . . . . .      . . . . . .

    `q_start` and `kv_start` are the positions of the first query and key.
    """
    mask = q_segments[:, :, None] == kv_segments[:, None, :]
    mask &= (kv_segments != 0)[:, None, :]
    if causal:
        q_positions = q_start + jnp.arange(q_segments.shape[1])
        kv_positions = kv_start + jnp.arange(kv_segments.shape[1])
        mask &= (q_positions[:, None] >= kv_positions[None, :])[None]
    return mask[:, None]


def attention(
    query: Float[Array, "batch q_length heads head_dim"],
    key: Float[Array, "batch kv_length heads head_dim"],
    value: Float[Array, "batch kv_length heads head_dim"],
    *,
    q_segments: Int[Array, "batch q_length"] | None,
    kv_segments: Int[Array, "batch kv_length"] | None,
    causal: bool = False,
    bias: Bias | None = None,
    block_size: int | None = None,
    fused: bool = False,
    constrain_scores: Callable[[jax.Array], jax.Array] = lambda scores: scores,
) -> Float[Array, "batch q_length heads head_dim"]:
    """Attention without 1/sqrt(head_dim): T5 folds it into the query's initialiser.

    Operands of products have the type of `query`; scores and softmax are float32. A
    query that may attend to nothing (padding) gets zeros.

    On a CPU within `frozen.scope`, `x86.attention` may replace plain and blockwise
    attention without `causal`. The positions of a segment must then be contiguous, or
    the call fails.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      q_segments: Segment of each query, 0 for padding. None, if `kv_segments` is None
        too and `causal` and `block_size` are off: `bias` encodes all masking, with
        `MASKED` where a key is hidden.
      kv_segments: Segment of each key, 0 for padding.
      causal: Whether a query sees only keys at its own position or before.
      bias: Added to the scores: a `DistanceBias`, or without `block_size` an array
        that broadcasts to [batch, heads, q_length, kv_length].
      block_size: None computes all q_length * kv_length scores at once. A number
        iterates over blocks of that many queries and keys with a running softmax (Rabe
        and Staats 2021), forward and backward: memory is linear in the length, at about
        1.5 times the arithmetic in training.
      fused: Whether to use a fused GPU kernel; see `has_fused`. Each row must then hold
        one segment that starts at position 0. The output at padding is finite but
        undefined.
      constrain_scores: Sets the sharding of scores [batch, heads, q_length, kv_length]
        that are computed all at once.

    Returns:
      Weighted values, in the type of `query`.
    """
    if fused:
        return _fused(query, key, value, kv_segments, causal=causal, bias=bias)
    if block_size is None:
        if isinstance(bias, distance_bias.DistanceBias):
            bias = bias.block(0, 0, query.shape[1], key.shape[1])
        return _softmax_attention(
            causal, constrain_scores, query, key, value, bias, q_segments, kv_segments
        )
    if isinstance(bias, jax.Array):
        raise ValueError(
            "Blockwise attention builds its bias block by block and cannot take a full "
            f"array (got shape {bias.shape}). Pass the DistanceBias itself."
        )
    by_block = functools.partial(_blockwise, causal, block_size)
    arrays = (query, key, value, bias, q_segments, kv_segments)
    if not causal and x86.can_attend(query, key, value, bias):
        return jax.lax.platform_dependent(*arrays, cpu=_on_x86, default=by_block)
    return by_block(*arrays)


def _on_x86(query, key, value, bias, q_segments, kv_segments):
    if kv_segments is None:
        q_segments, kv_segments = (
            jnp.ones(x.shape[:2], jnp.int32) for x in (query, key)
        )
    return x86.attention(query, key, value, bias, q_segments, kv_segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax_attention(
    causal, constrain_scores, query, key, value, bias, q_segments, kv_segments
):
    """softmax(query key^T + bias) value with the derivative written out.

    Softmax is normalised after the product with `value`, and its derivative computes
    sum(weights * d_weights) from the result, as flash attention does (Dao et al. 2022,
    appendix B). This minimises reads and writes of arrays of size length^2. The one
    array of that size saved for the backward pass has the type of `query`.
    """
    arrays = (query, key, value, bias, q_segments, kv_segments)

    def at_once(*arrays):
        return _softmax_attention_fwd(causal, constrain_scores, *arrays)[0]

    sizes = (*query.shape, *key.shape)
    if not all(isinstance(size, int) for size in sizes):
        return at_once(*arrays)  # Symbolic dimensions of jax.export.
    if jax.sharding.get_abstract_mesh().size > 1:
        return at_once(*arrays)
    by_parts = functools.partial(_part_by_part, causal)
    return jax.lax.platform_dependent(*arrays, cpu=by_parts, default=at_once)


def _part_by_part(causal, query, key, value, bias, q_segments, kv_segments):
    """Computes a few rows or heads at a time, on a CPU; has no gradient.

    The scores of ProtT5's 32 heads are 32 MiB for 512 residues, more than the caches
    hold: every pass over all of them would read from memory.
    """
    batch, q_length, heads, _ = query.shape
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    if not causal and x86.can_attend(query, key, value, bias):
        return _on_x86(query, key, value, bias, q_segments, kv_segments)
    rows, some_heads = _part_in_cache(query.shape, key.shape)
    head_parts = -(-heads // some_heads)
    parts = -(-batch // rows) * head_parts
    # Heads first, transposed once: each part is then contiguous in memory.
    arrays = [jnp.swapaxes(x, 1, 2) for x in (query, key, value)]
    if bias is not None:
        arrays.append(bias)
    if q_segments is not None:
        mask = make_mask(q_segments, kv_segments, causal=causal)
        arrays.append(jnp.where(mask, 0.0, MASKED))
    # Otherwise XLA recomputes the mask for every head and folds the transposes into the
    # products; both are slower.
    arrays = jax.lax.optimization_barrier(arrays)
    if parts == 1:
        return jnp.swapaxes(_attend(*arrays), 1, 2)

    def cut(x, row, head):
        # XLA clamps a start that is too large, here and in the result alike.
        if x.shape[0] > 1:
            x = jax.lax.dynamic_slice_in_dim(x, row, rows, 0)
        if x.shape[1] > 1:
            x = jax.lax.dynamic_slice_in_dim(x, head, some_heads, 1)
        return x

    def compute_part(index, out):
        row = index // head_parts * rows
        head = index % head_parts * some_heads
        part = _attend(*(cut(x, row, head) for x in arrays))
        return jax.lax.dynamic_update_slice(out, part, (row, head, 0, 0))

    # Not unrolled: one body to compile, one buffer for its scores.
    out = jnp.zeros((batch, heads, q_length, value.shape[-1]), query.dtype)
    out = jax.lax.fori_loop(0, parts, compute_part, out)
    return jnp.swapaxes(out, 1, 2)


def _part_in_cache(query_shape, key_shape):
    """(rows, heads) of a part: some heads of one row, or all heads of some rows."""
    batch, q_length, heads, _ = query_shape
    row_bytes = 4 * heads * q_length * key_shape[1]
    if batch * row_bytes <= FEW_SCORES_BYTES:
        return batch, heads
    if row_bytes > CACHED_SCORES_BYTES:
        # At least two: a single product scales worse over the cores.
        fitting = max(2, CACHED_SCORES_BYTES * heads // row_bytes)
        return 1, _even_part(heads, fitting)
    return _even_part(batch, CACHED_SCORES_BYTES // row_bytes), heads


def _even_part(number, limit):
    """Size of nearly equal parts of `number`, as few as possible, at most `limit`."""
    return -(-number // -(-number // limit))


def _attend(query, key, value, *biases):
    """Attention of arrays [batch, heads, length, head_dim]."""
    dtype = query.dtype
    scores = products.einsum("bhqd,bhkd->bhqk", query, key, dtype, jnp.float32)
    weights, total = _weigh(sum(biases, start=scores))
    out = products.einsum(
        "bhqk,bhkd->bhqd", weights.astype(dtype), value, dtype, jnp.float32
    )
    return (out / total).astype(dtype)


def _softmax_attention_fwd(
    causal, constrain_scores, query, key, value, bias, q_segments, kv_segments
):
    dtype = query.dtype
    scores = products.einsum("bqhd,bkhd->bhqk", query, key, dtype, jnp.float32)
    if bias is not None:
        scores = scores + bias
    if q_segments is not None:
        mask = make_mask(q_segments, kv_segments, causal=causal)
        scores = jnp.where(mask, scores, MASKED)
    scores = constrain_scores(scores)
    weights, total = _weigh(scores)
    weights = weights.astype(dtype)
    out = products.einsum("bhqk,bkhd->bqhd", weights, value, dtype, jnp.float32)
    out = (out / jnp.swapaxes(total, 1, 2)).astype(dtype)
    out = _name_context(out)
    return out, (query, key, value, bias, weights, total, out)


def _weigh(scores):
    """Softmax numerators and their sums; 0 and 1 where every key is masked.

    float32: bfloat16 softmax over 512 keys loses the small weights of distant contacts.
    """
    # Larger than MASKED, so that the weights of a query without keys are 0, not 1.
    peak = jnp.maximum(scores.max(axis=-1, keepdims=True), 0.5 * MASKED)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    return weights, jnp.where(total == 0.0, 1.0, total)


def _softmax_attention_bwd(causal, constrain_scores, residuals, grad):
    del causal, constrain_scores
    query, key, value, bias, weights, total, out = residuals
    dtype = query.dtype
    d_weights = products.einsum("bqhd,bkhd->bhqk", grad, value, dtype, jnp.float32)
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    # [batch, q_length, heads] -> [batch, heads, q_length, 1]
    mean = jnp.swapaxes(mean, 1, 2)[..., None]
    d_scores = weights.astype(jnp.float32) * (d_weights - mean) / total
    grad = (grad / jnp.swapaxes(total, 1, 2)).astype(dtype)
    d_value = products.einsum("bhqk,bqhd->bkhd", weights, grad, dtype, value.dtype)
    d_bias = None if bias is None else _sum_to(d_scores, bias)
    d_scores = d_scores.astype(dtype)
    d_query = products.einsum("bhqk,bkhd->bqhd", d_scores, key, dtype, query.dtype)
    d_key = products.einsum("bhqk,bqhd->bkhd", d_scores, query, dtype, key.dtype)
    return d_query, d_key, d_value, d_bias, None, None


def _sum_to(x, like):
    """Sums `x` over the axes along which `like` was broadcast to it."""
    shape = (1,) * (x.ndim - like.ndim) + like.shape
    axes = [i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1]
    x = x.sum(axis=axes, keepdims=True) if axes else x
    return x.reshape(like.shape).astype(like.dtype)


_softmax_attention.defvjp(_softmax_attention_fwd, _softmax_attention_bwd)


def _fused(query, key, value, kv_segments, *, causal, bias):
    if isinstance(bias, distance_bias.DistanceBias):
        bias = bias.block(0, 0, query.shape[1], key.shape[1])
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    # At least one: without any key a row would be NaN.
    lengths = jnp.maximum(jnp.sum(kv_segments != 0, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        scale=1.0,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation=FUSED_IMPLEMENTATION,
    )


def skips_other_segments(platform: str, dtype: DTypeLike, head_dim: int) -> bool:
    """Whether the x86 attention kernel is available for these heads.

    It computes no scores between different segments, and is the fastest at every
    length.
    """
    return platform == "cpu" and x86.has_attention(dtype, head_dim)


@functools.cache
def has_fused(dtype: DTypeLike, head_dim: int) -> bool:
    """Whether this process's GPU supports the fused kernel for these heads.

    cuDNN provides it on GPUs from Ampere on. Only bfloat16 is used: results in float16
    were never checked. Tests by running it, since the compatible versions of CUDA,
    cuDNN and JAX are not documented.
    """
    if jax.default_backend() != "gpu" or jnp.dtype(dtype) != jnp.bfloat16:
        return False
    heads = jnp.zeros((2, 16, 2, head_dim), dtype)
    segments, bias = jnp.ones((2, 16), jnp.int32), jnp.zeros((2, 16, 16))
    run = jax.jit(functools.partial(attention, fused=True))
    try:
        run(
            heads, heads, heads, q_segments=segments, kv_segments=segments, bias=bias
        ).block_until_ready()
    except Exception as error:  # Any error of JAX, XLA or cuDNN.
        logging.warning("No fused attention on this GPU, which is slower: %s", error)
        return False
    return True


def _blockwise(causal, block_size, query, key, value, bias, q_segments, kv_segments):
    batch, q_length, heads, head_dim = query.shape
    dtype = query.dtype
    q_size = min(block_size, q_length)
    kv_size = min(block_size, key.shape[1])
    q_padding = -q_length % q_size
    kv_padding = -key.shape[1] % kv_size
    if bias is not None:
        bias = bias.pad(q_padding, kv_padding)

    def blocks(x, size, padding):
        # [batch, length, ...] -> [blocks, batch, size, ...]; padding is segment 0
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, -1, size, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    queries = blocks(query, q_size, q_padding), blocks(q_segments, q_size, q_padding)
    keys = tuple(blocks(x, kv_size, kv_padding) for x in (key, value, kv_segments))
    q_starts = jnp.arange(queries[0].shape[0]) * q_size
    kv_starts = jnp.arange(keys[0].shape[0]) * kv_size

    # The checkpoints make the backward pass blockwise too: the scores of a block are
    # recomputed instead of saved.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def query_block(block):
        q_start, q, q_seg = block

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def key_block(carry, block):
            peak, total, context = carry
            kv_start, k, v, kv_seg = block
            scores = products.einsum("bqhd,bkhd->bhqk", q, k, dtype, jnp.float32)
            if bias is not None:
                scores = scores + bias.block(q_start, kv_start, q_size, kv_size)
            mask = make_mask(
                q_seg, kv_seg, causal=causal, q_start=q_start, kv_start=kv_start
            )
            scores = jnp.where(mask, scores, MASKED)
            # Any peak gives the same result, so no gradient needs to pass through it.
            new_peak = jax.lax.stop_gradient(
                jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
            )
            weights = jnp.where(mask, jnp.exp(scores - new_peak), 0.0)
            rescale = jnp.exp(peak - new_peak)
            total = total * rescale + weights.sum(axis=-1, keepdims=True)
            context = context * rescale + products.einsum(
                "bhqk,bkhd->bhqd", weights.astype(dtype), v, dtype, jnp.float32
            )
            return (new_peak, total, context), None

        start = (
            jnp.full((batch, heads, q_size, 1), MASKED, jnp.float32),
            jnp.zeros((batch, heads, q_size, 1), jnp.float32),
            jnp.zeros((batch, heads, q_size, head_dim), jnp.float32),
        )
        (_, total, context), _ = jax.lax.scan(key_block, start, (kv_starts, *keys))
        context = context / jnp.where(total == 0.0, 1.0, total)
        return context.astype(dtype)

    out = jax.lax.map(query_block, (q_starts, *queries))
    # [blocks, batch, heads, size, head_dim] -> [batch, q_length, heads, head_dim]
    out = jnp.moveaxis(out, (0, 3), (1, 2)).reshape(batch, -1, heads, head_dim)
    return _name_context(out[:, :q_length])


def _name_context(out):
    """Names attention's result for rematerialisation policies."""
    # Saved with merged heads: a TPU would pad a last axis of 64 to 128.
    flat = out.reshape(*out.shape[:2], -1)
    return ad_checkpoint.checkpoint_name(flat, "attention_context").reshape(out.shape)
