"""Runs batches through the model: calls are queued; too large ones are halved."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import math
import time
from typing import NamedTuple

from absl import logging
from flax import linen as nn
import jax
from jaxtyping import Float
import numpy as np

from prottrans_jax import types
from prottrans_jax.costs import hardware
from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import batching, forward, pooling
from prottrans_jax.kernels import products

# Tokens of a call on a CPU, for a small model: the overhead of a call dominates.
_CPU_TOKENS_SMALL, _SMALL_PARAMETERS = 4096, 10_000_000
# Seconds to compile one program (one layer), on two cores and for an H200, and a limit
# of the equivalent number of tokens, which matters for small models: most of their time
# is not spent in products. Measured with AVX2 in rows of 200 tokens: 66,000 tokens (0.4
# million parameters), 6,400 (8 million), 2,000 (25 million). For shared rows, `cost`
# includes attention, and the first figure is 110,000. For separate rows only tokens are
# counted.
_COMPILE_COSTS = {
    "cpu": (0.5, 2e4),
    "cpu, shared rows": (0.5, 1e5),
    "accelerator": (1.8, 4e6),
}
# FLOP/s of two cores; share of its peak FLOP/s that an accelerator reaches; peak FLOP/s
# of one that `costs.hardware` does not know.
_CPU_FLOPS, _SHARE_OF_PEAK, _DEFAULT_PEAK_FLOPS = 2e11, 0.6, 5e13
_LAST = forward.Layers()
# Calls queued on each device before the first result is awaited.
_IN_FLIGHT = 2


class OutOfMemory(RuntimeError):
    """A single sequence does not fit into memory, even with blockwise attention."""


class Embedding(NamedTuple):
    """Vectors of one protein; those that were not requested are None.

    Attributes:
      residues: [*layers, residues, d_model], in the model's type.
      protein: [*layers, d_model], float32.
    """

    residues: np.ndarray | None
    protein: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Maps residues to rows of token ids.

    Attributes:
      table: [256] id of each byte.
      prefix: Ids before the residues.
      suffix: Ids after them.
      pad_id: Id of padding.
      cls: Position of [CLS] in a sequence: 0 is the first token, -1 the last (XLNet).
    """

    table: np.ndarray
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    cls: int = 0

    @property
    def num_special(self) -> int:
        """Special tokens of a sequence."""
        return len(self.prefix) + len(self.suffix)

    def rows(
        self, sequences: Sequence[bytes], batch: batching.Batch
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and segments, both [rows, length]; segments of a row start at 1."""
        tokens = np.full((batch.rows, batch.length), self.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for sequence, span in zip(sequences, batch.spans, strict=True):
            row, start, stop = span
            residues = self.table[np.frombuffer(sequence, np.uint8)]
            own = np.concatenate([self.prefix, residues, self.suffix])
            tokens[row, start:stop] = own
            segments[row, start:stop] = 1 + (segments[row, start - 1] if start else 0)
        return tokens, segments


class Embedder:
    """Runs batches of sequences through a model.

    Args:
      module: Linen model with `encode`.
      params: Its parameters.
      tokens: Maps residues to tokens.
      layers: Hidden states to return.
      pool: Pooling for `Embedding.protein`, or None.
      keep_residues: Whether to return `Embedding.residues`.
      max_tokens: Most tokens of a call, with padding; None chooses by device.
      max_rows: Most sequences of a call.
      devices: Devices to use in turn; None: all local accelerators, or one CPU.
      may_share_rows: Whether several sequences may share a row even if attention then
        computes, and masks, the scores between them.
      copies: Parameters on each device, filled when a device is first used. Embedders
        of one model share it.
    """

    def __init__(
        self,
        module: nn.Module,
        params: types.Params,
        tokens: Tokens,
        *,
        layers: forward.Layers = _LAST,
        pool: str | None = None,
        keep_residues: bool = True,
        max_tokens: int | None = None,
        max_rows: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        may_share_rows: bool = False,
        copies: dict[jax.Device, types.Params] | None = None,
    ):
        if devices is None:
            local = jax.local_devices()
            devices = local[:1] if local[0].platform == "cpu" else local
        self._size = sum(x.size for x in jax.tree.leaves(params))
        if max_tokens is None:
            max_tokens = tokens_of_call(params, devices[0].platform)
        self.module = module
        self.tokens = tokens
        self.layers = layers
        self.pool = pool
        self.keep_residues = keep_residues
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.devices = list(devices)
        self.packs = forward.can_pack(module, self.devices[0].platform)
        self.shares_rows = (
            may_share_rows
            and self.devices[0].platform == "cpu"
            and module.has_dot_product_attention
            and max_rows is None
        )
        self._params = params
        self._copies = {} if copies is None else copies
        self._turn = 0
        # Time of the first call of each shape, which compiles its programs.
        self.compile_seconds = 0.0
        self._started: set[tuple[int, int]] = set()
        # (rows, length) of planned calls, which have compiled programs.
        self._seen: set[tuple[int, int]] = set()
        # Limits learnt from calls that ran out of memory.
        self._rows_limit: dict[int, int] = {}
        self._row_limit = math.inf
        self._blockwise_from: int | None = None

    def compile_cost_tokens(self) -> float:
        """Estimated number of tokens computed in the time of one compilation."""
        device = self.devices[0]
        if device.platform == "cpu":
            kind = "cpu, shared rows" if self.shares_rows else "cpu"
            seconds, most = _COMPILE_COSTS[kind]
            flops = _CPU_FLOPS
        else:
            seconds, most = _COMPILE_COSTS["accelerator"]
            peak_flops = hardware.peak_flops(device) or _DEFAULT_PEAK_FLOPS
            flops = _SHARE_OF_PEAK * peak_flops
        return min(seconds * flops / (2.0 * max(self._size, 1)), most)

    def cost(self, tokens: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Estimated cost of sequences by their tokens, in tokens of a short one.

        Products are linear in the length, attention is quadratic. FLOPs of attention
        count three times, because scores are exponentiated and pass through memory.
        """
        config = self.module.config
        inner, layers = config.num_heads * config.head_dim, config.num_layers
        tokens = np.asarray(tokens, np.float64)
        # FLOPs: 2 * size per token for products; 4 * inner per layer and token pair.
        return tokens * (1.0 + 3 * 2.0 * inner * layers * tokens / max(self._size, 1))

    def buckets(self, lengths: Sequence[int]) -> np.ndarray:
        """Row lengths for a job; empty if sequences are packed.

        Args:
          lengths: Residues of all sequences of the job.
        """
        tokens = np.asarray(lengths, np.int64) + self.tokens.num_special
        if self.packs:
            return np.zeros(0, np.int64)
        compile_cost = self.compile_cost_tokens()
        if self.shares_rows:
            max_length = self.module.max_length
            return batching.choose_shared(
                tokens, self.cost, compile_cost, self.max_tokens, max_length
            )
        return batching.choose_buckets(tokens, compile_cost)

    def work(
        self,
        sequences: Sequence[bytes],
        buckets: np.ndarray,
        tag: object = None,
        *,
        more_to_come: bool = False,
    ) -> list["Work"]:
        """Batches of sequences, the longest first.

        `batching.pack` or `batching.plan` makes them.

        Args:
          sequences: Residues of each.
          buckets: Row lengths, from `buckets`.
          tag: Any value of the caller's; kept in `Work.tag`.
          more_to_come: Whether these sequences are only a part of the job.
        """
        lengths = [len(x) + self.tokens.num_special for x in sequences]
        limits = self.max_tokens, self.max_rows
        max_length = self.module.max_length
        batches: Iterable[batching.Batch]
        if self.packs:
            batches = batching.pack(lengths, *limits, max_length)
        else:
            batches = batching.plan(
                lengths,
                buckets,
                *limits,
                max_length,
                self.compile_cost_tokens(),
                self._seen,
                more_to_come,
                self.shares_rows,
            )
        return [
            Work(batch, [sequences[i] for i in batch.members], tag) for batch in batches
        ]

    def run(
        self,
        work: Iterable["Work"],
        on_too_large: Callable[["Work", OutOfMemory], None] | None = None,
        on_wait: Callable[["Work"], None] = lambda work: None,
    ) -> Iterator[tuple["Work", int, Embedding]]:
        """(work, number, vectors) of every member of the batches.

        Reads `work` a few batches ahead, so that the host prepares batches while the
        device computes.

        Args:
          work: Batches with their sequences.
          on_too_large: Called if a single sequence does not fit; it is then left out.
            If None, the error is raised.
          on_wait: Called with a batch before its compilation, and before the wait for
            its result.

        Raises:
          OutOfMemory: A single sequence does not fit.
        """
        source = iter(work)
        todo: collections.deque[Work] = collections.deque()
        waiting: collections.deque[_Call] = collections.deque()
        while True:
            while len(waiting) < _IN_FLIGHT * len(self.devices):
                item = todo.popleft() if todo else next(source, None)
                if item is None:
                    break
                if self._is_too_large(item.batch):
                    todo.extendleft(reversed(self._halves(item)))
                    continue
                waiting.append(self._start(item, on_wait))
            if not waiting:
                return
            stop_signals.check()
            call = waiting.popleft()
            on_wait(call.work)
            try:
                if isinstance(call.result, Exception):
                    raise call.result
                arrays = [x if x is None else np.asarray(x) for x in call.result]
            except Exception as error:  # The class depends on the platform.
                if not _is_out_of_memory(error):
                    raise
                try:
                    todo.extendleft(reversed(self._smaller(call, error)))
                except OutOfMemory as too_large:
                    if on_too_large is None:
                        raise
                    on_too_large(call.work, too_large)
                continue
            yield from self._split(call.work, *arrays)

    def _start(self, work: "Work", on_wait: Callable[["Work"], None]) -> "_Call":
        batch = work.batch
        started = time.perf_counter()
        is_new = (batch.rows, batch.length) not in self._started
        if is_new:
            on_wait(work)
        tokens, segments = self.tokens.rows(work.sequences, batch)
        device = self.devices[self._turn % len(self.devices)]
        self._turn += 1
        # The choice assumes a full batch, so that it depends on the length only.
        rows = max(1, self.max_tokens // batch.length)
        module = forward.for_shape(self.module, rows, batch.length, device.platform)
        if self._blockwise_from is not None and batch.length >= self._blockwise_from:
            module = forward.blockwise(self.module)
        if device not in self._copies:
            self._copies[device] = _on_device(self._params, device)
        try:
            with jax.default_device(device):
                result = self._call(module, self._copies[device], tokens, segments)
        except Exception as error:
            result = error
        if is_new:
            self._started.add((batch.rows, batch.length))
            self.compile_seconds += time.perf_counter() - started
        return _Call(work, module, result)

    def _call(self, module, params, tokens, segments):
        # Independent of the batch's contents: one program for all calls of a shape.
        packed = self.packs or self.shares_rows
        spec = forward.OutputSpec(
            layers=self.layers,
            # Rows of several sequences are pooled on the host, in `_split`.
            pool=None if packed else self.pool,
            keep_residues=packed or self.keep_residues,
            num_prefix=len(self.tokens.prefix),
            num_special=self.tokens.num_special,
            cls=self.tokens.cls,
        )
        return forward.run(module, params, tokens, segments, spec)

    def _is_too_large(self, batch: batching.Batch) -> bool:
        if batch.rows > 1:
            return batch.rows > self._rows_limit.get(batch.length, batch.rows)
        return batch.tokens > self._row_limit and len(batch.members) > 1

    def _halves(self, work: "Work") -> list["Work"]:
        """Two batches of half the size; an empty one is left out."""
        first, second = work.batch.halves(self._row_length)
        cut = len(first.members)
        parts = [
            Work(first, work.sequences[:cut], work.tag),
            Work(second, work.sequences[cut:], work.tag),
        ]
        return [part for part in parts if part.batch.members]

    def _row_length(self, tokens: int) -> int:
        if self.packs:
            max_length = self.module.max_length
            return batching.packed_length(tokens, self.max_tokens, max_length)
        return int(batching.round_up(tokens))

    def _smaller(self, call: "_Call", error: Exception) -> list["Work"]:
        batch = call.work.batch
        if batch.rows > 1:
            limit = (batch.rows + 1) // 2
            logging.warning(
                "%d rows of %d tokens do not fit into memory; continuing with %d.",
                batch.rows,
                batch.length,
                limit,
            )
            for length in {*self._rows_limit, batch.length}:
                if length >= batch.length:
                    previous_limit = self._rows_limit.get(length, limit)
                    self._rows_limit[length] = min(previous_limit, limit)
            return self._halves(call.work)
        if len(batch.members) > 1:
            self._row_limit = min(self._row_limit, batch.tokens // 2)
            logging.warning(
                "%d tokens in a row do not fit into memory; continuing with %d.",
                batch.tokens,
                self._row_limit,
            )
            return self._halves(call.work)
        if call.module.compute.attention == "plain":
            logging.warning(
                "One row of %d tokens does not fit into memory; continuing with "
                "blockwise attention.",
                batch.length,
            )
            self._blockwise_from = batch.length
            return [call.work]
        residues = len(call.work.sequences[0])
        raise OutOfMemory(
            f"A sequence of {residues:,} residues does not fit into memory, even alone "
            "and with blockwise attention. Cut long sequences (--max-length with "
            "--long chunk), or leave them out (--long skip)."
        ) from error

    def _split(self, work, hidden, pooled):
        batch = work.batch
        by_member = zip(batch.members, work.sequences, batch.spans, strict=True)
        for member, sequence, (row, start, stop) in by_member:
            first = start + len(self.tokens.prefix)
            residues = protein = None
            if hidden is not None:
                residues = hidden[..., row, first : first + len(sequence), :]
            if pooled is not None:
                protein = pooled[..., row, :]
            elif self.pool == "cls":
                cls = range(start, stop)[self.tokens.cls]
                protein = hidden[..., row, cls, :].astype(np.float32)
            elif self.pool is not None:
                protein = pooling.pool_protein(residues, self.pool)
            if not self.keep_residues:
                residues = None
            yield work, member, Embedding(residues, protein)


@dataclasses.dataclass(frozen=True)
class Work:
    """A batch with the sequences of its members; `tag` is any value of the caller's."""

    batch: batching.Batch
    sequences: Sequence[bytes]
    tag: object = None


@dataclasses.dataclass
class _Call:
    work: Work
    module: nn.Module
    result: Exception | Iterable[jax.Array | None]


def tokens_of_call(params: types.Params, platform: str) -> int:
    """Most tokens of a call, with padding, unless the user chooses."""
    size = sum(x.size for x in jax.tree.leaves(params))
    if platform == "cpu" and size < _SMALL_PARAMETERS:
        return _CPU_TOKENS_SMALL
    return products.best_rows(platform)


def _is_out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__}: {error}"
    return (
        "RESOURCE_EXHAUSTED" in text
        or "Out of memory" in text
        or (isinstance(error, MemoryError))
    )


def _on_device(params, device):
    at_home = all(
        isinstance(x, jax.Array) and x.devices() == {device}
        for x in jax.tree.leaves(params)
    )
    return params if at_home else jax.device_put(params, device)
