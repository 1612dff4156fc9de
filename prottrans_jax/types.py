"""Types that several packages share. Axis names are those of the style guide."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jaxtyping import Array, Float
import numpy as np

# Nested dictionaries of arrays; boxed with logical axis names straight after `init`.
Params = Mapping[str, Any]
# Features of one batch, all [rows, length], under T5X's names.
Batch = Mapping[str, jax.Array]
# What one step hands to the next besides the state: `()` for families without memories.
Carry = Any
# (total, weight) per metric: both add up over microbatches, batches and hosts.
Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Objective(Protocol):
    """A loss on a batch, which owns the model; see `objectives.denoising.Denoising`."""

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used."""

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> Params:
        """Parameters, boxed with their logical axis names."""

    def initial_carry(self, batch_size: int) -> Carry:
        """What the first step gets besides the state."""

    def normalizers(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Sums that `__call__` divides by; they add over batches."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        normalizers: Mapping[str, Float[Array, ""]],
        carry: Carry,
        rng: jax.Array,
        *,
        train: bool,
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carry]]:
        """Loss of a batch or microbatch, and (metrics, carry)."""

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """Model FLOPs of one training step on such a batch."""


class Optimizer(Protocol):
    """What makes updates of gradients; see `optimizers.Optimizer`."""

    def build(self, axes: Any) -> Any:
        """The optimizer as an optax transformation, for such logical axes."""

    def state_axes(self, params: Any, axes: Any) -> Any:
        """Logical axes of its state."""

    def learning_rate_at(self, step: Any) -> Float[Array, ""]:
        """Learning rate of the update from `step` to `step` + 1."""


class Partitioner(Protocol):
    """A mesh and how arrays lie on it; see `partitioning.Partitioner`."""

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh."""

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """Sharding of the features of a batch."""

    @property
    def compiler_options(self) -> dict[str, bool]:
        """XLA's options for its devices."""

    def scope(self) -> Any:
        """Context in which models are traced."""

    def shardings(self, axes: Any, shapes: Any) -> Any:
        """Shardings of arrays with these logical axes."""

    def host_rows(self, batch_size: int) -> np.ndarray:
        """Rows of the global batch that this process makes."""

    def put_batch(
        self, local_batch: Mapping[str, np.ndarray], batch_size: int
    ) -> dict[str, jax.Array]:
        """The global batch, of which `local_batch` are this process's own rows."""


class Loader(Protocol):
    """Global batches of a run, in their order; see `data.loader.RowLoader`."""

    batch_size: int

    @property
    def vocab_size(self) -> int:
        """Ids that may be in a batch: 0 to `vocab_size` - 1."""

    @property
    def num_batches(self) -> int | None:
        """Batches of a finite loader; None if it never ends."""

    @property
    def unigram_entropy(self) -> float:
        """Loss in nats of a model that knows frequencies only."""

    def batch(self, index: int, rows: Any = ...) -> dict[str, np.ndarray]:
        """Part of global batch `index`."""

    def example_ids(self, index: int) -> Sequence[str]:
        """Ids of the records of a batch."""

    def state(self, next_index: int) -> dict[str, Any]:
        """What `restore` needs to go on with batch `next_index`; plain JSON."""

    def restore(self, state: Mapping[str, Any]) -> int:
        """Index of the next batch of a run that goes on."""


def shape_of(entry: Any) -> tuple[int, ...]:
    """The shape itself, or of anything that has one."""
    return tuple(getattr(entry, "shape", entry))
