"""A batch of four rows whole, and as two microbatches added up."""

from typing import Any, NamedTuple

import jax
import numpy as np


class Step(NamedTuple):
    """What a step on a batch gives, or the sums over its microbatches."""

    normalizers: Any
    loss: Any
    metrics: Any
    grads: Any
    carry: Any = None


def add(*trees):
    return jax.tree.map(lambda *xs: sum(xs), *trees)


def whole_and_summed(objective, params, step, batch):
    batch = jax.device_put(batch)
    normalizers = objective.normalizers(batch)
    (loss, (metrics, carry)), grads = step(params, batch, normalizers)
    parts = [
        {name: x[rows] for name, x in batch.items()}
        for rows in (slice(0, 2), slice(2, 4))
    ]
    results = [step(params, part, normalizers) for part in parts]
    summed = Step(
        add(*(objective.normalizers(part) for part in parts)),
        add(*(r[0][0] for r in results)),
        add(*(r[0][1][0] for r in results)),
        add(*(r[1] for r in results)),
    )
    return Step(normalizers, loss, metrics, grads, carry), summed


def assert_close(ours, expected, limit):
    """Every array of a tree within `limit`, a number or a function of the array."""
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        atol = limit(y) if callable(limit) else limit
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def of_the_largest(expected):
    return 1e-5 * max(1, np.abs(expected).max())
