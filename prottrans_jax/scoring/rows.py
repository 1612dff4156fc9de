"""Batches of rows for a likelihood: bounded tokens, few shapes, results in order."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
from jaxtyping import Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import batching, embedder, forward
from prottrans_jax.encoders import frozen_models
from prottrans_jax.models import t5
from prottrans_jax.scoring import likelihoods

# Most tokens of a batch on a CPU: rows of some hundred tokens keep the cores busy, and
# the activations of more do not fit into their caches.
_CPU_TOKENS = 512
# Batches in flight: one is computed while the next one is prepared.
_IN_FLIGHT = 2
_Call = Callable[
    [
        Int[np.ndarray, "batch length"],
        Int[np.ndarray, "batch length"],
        Int[np.ndarray, " batch"],
    ],
    jax.Array,
]


class Rows:
    """Makes rows of one protein each, and runs them in batches.

    Args:
      likelihood: Whose vocabulary and special pieces the rows have.
      params: Its parameters, which decide with the device how large a batch is.
      max_tokens: Most tokens of a batch, with padding; None: depends on the device. A
        protein that is longer is a batch of its own.
    """

    def __init__(
        self,
        likelihood: likelihoods.Likelihood,
        params: types.Params,
        max_tokens: int | None = None,
    ):
        vocabulary = likelihood.vocabulary
        self._tokens = embedder.Tokens(
            vocabulary.byte_table,
            likelihood.prefix,
            likelihood.suffix,
            vocabulary.pad_id,
        )
        self._limit = likelihood.module.max_length
        if max_tokens is None:
            platform = jax.default_backend()
            max_tokens = embedder.tokens_of_call(params, platform)
            if platform == "cpu":
                max_tokens = min(max_tokens, _CPU_TOKENS)
        self.max_tokens = max_tokens

    def run(
        self,
        residues: Sequence[bytes],
        call: _Call,
        on_rows: Callable[[int], None],
    ) -> list[Float[np.ndarray, "..."]]:
        """Results of each protein's row, in order.

        Args:
          residues: Proteins; equal ones may occur many times.
          call: Called with tokens, segments (1, or 0 at padding) and the indices in
            `residues` of the rows; returns an array with an entry for each row. The
            last rows may repeat one protein.
          on_rows: Called with the number of rows that a batch has completed.
        """
        results: list = [None] * len(residues)
        waiting: list[tuple[np.ndarray, jax.Array]] = []

        def finish():
            chosen, output = waiting.pop(0)
            for index, result in zip(chosen, np.asarray(output), strict=False):
                results[index] = result
            on_rows(len(chosen))

        for length, rows, chosen in self._batches([len(x) for x in residues]):
            stop_signals.check()
            # Rows that are not needed repeat the last protein.
            padded = np.pad(chosen, (0, rows - len(chosen)), mode="edge")
            tokens, segments = self._tokens.rows(
                [residues[i] for i in padded],
                batching.one_each(
                    range(rows),
                    [len(residues[i]) + self._tokens.num_special for i in padded],
                    length=length,
                ),
            )
            waiting.append((chosen, call(tokens, segments, padded)))
            if len(waiting) == _IN_FLIGHT:
                finish()
        while waiting:
            finish()
        return results

    def _batches(self, lengths):
        """(row length, rows, indices) of each batch; one shape for each row length."""
        if not lengths:
            return
        padded = batching.round_up(np.array(lengths) + self._tokens.num_special)
        if self._limit is not None:
            padded = np.minimum(padded, self._limit)
        for length in np.unique(padded)[::-1].tolist():
            indices = np.flatnonzero(padded == length)
            rows = max(1, self.max_tokens // length)
            # Few proteins: the next power of two, so that few programs are compiled.
            rows = min(rows, 1 << (len(indices) - 1).bit_length())
            for start in range(0, len(indices), rows):
                yield length, rows, indices[start : start + rows]


def max_residues(model: frozen_models.Model) -> int | None:
    """Longest protein the model has positions for; None if there is no limit."""
    limit = model.module.max_length
    return None if limit is None else limit - len(model.prefix) - len(model.suffix)


def bounded(
    likelihood: likelihoods.Likelihood, tokens: Int[jax.Array, "batch length"]
) -> likelihoods.Likelihood:
    """The likelihood with the attention for rows of this shape."""
    module, platform = likelihood.module, jax.default_backend()
    rows, length = tokens.shape
    chosen = forward.for_shape(module, rows, length, platform)
    if isinstance(module, t5.T5) and chosen.compute.fused_attention:
        # The fused kernel is for encoders; a decoder keeps plain attention.
        chosen = module
    return dataclasses.replace(likelihood, module=chosen)
