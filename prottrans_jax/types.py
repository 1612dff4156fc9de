"""Types that several packages share."""

from collections.abc import Mapping, Sequence
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, PyTree
import numpy as np

if TYPE_CHECKING:
    import optax

# Nested dictionaries of arrays; boxed with logical axis names straight after `init`.
Params = Mapping[str, Any]
# Features of one batch, each with the rows first; of tokens [rows, length], under T5X's
# names.
Batch = Mapping[str, jax.Array]
# Passed from step to step besides the state: `()` for families without memories.
Carry = Any
# (total, weight) per metric: both add up over microbatches, batches and hosts.
Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


@runtime_checkable
class Shaped(Protocol):
    """An array, or only its shape and type, such as `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements."""


@runtime_checkable
class ModelConfig(Protocol):
    """Sizes that the configurations of all families have; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""

    @property
    def num_layers(self) -> int:
        """Layers; of the encoder, if there is a decoder too."""

    @property
    def num_heads(self) -> int:
        """Heads of a layer."""

    @property
    def head_dim(self) -> int:
        """Size of a head."""

    @property
    def d_model(self) -> int:
        """Size of a hidden state."""

    @property
    def d_ff(self) -> int:
        """Size of the inner layer of an MLP."""


@runtime_checkable
class Objective(Protocol):
    """Loss of a batch; holds the model. See `objectives.objective.Objective`."""

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used."""

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> Params:
        """Parameters, boxed with their logical axis names."""

    def initial_carry(self, batch_size: int) -> Carry:
        """Carry of the first step."""

    def normalizers(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Sums that `__call__` divides by; additive over batches."""

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
        """Model FLOPs of one training step on a batch of these shapes."""


@runtime_checkable
class Optimizer(Protocol):
    """Computes updates from gradients; see `optimizers.Optimizer`."""

    def build(self, axes: PyTree) -> "optax.GradientTransformation":
        """The optax transformation for parameters with these logical axes."""

    def state_axes(self, params: PyTree, axes: PyTree) -> PyTree:
        """Logical axes of the optimizer's state."""

    def learning_rate_at(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """Learning rate of the update from `step` to `step` + 1."""


@runtime_checkable
class Partitioner(Protocol):
    """A mesh and the shardings of arrays; see `partitioning.Partitioner`."""

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh."""

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """Sharding of the features of a batch."""

    @property
    def compiler_options(self) -> dict[str, bool]:
        """XLA's options for the mesh's devices."""

    def scope(self) -> contextlib.AbstractContextManager[jax.sharding.Mesh]:
        """Context in which models are traced."""

    def shardings(self, axes: PyTree, shapes: PyTree) -> PyTree:
        """Shardings of arrays with these logical axes."""

    def host_rows(self, batch_size: int) -> np.ndarray:
        """Rows of the global batch that this process must provide."""

    def put_batch(
        self, local_batch: Mapping[str, np.ndarray], batch_size: int
    ) -> dict[str, jax.Array]:
        """The global batch; `local_batch` holds the rows of this process."""


@runtime_checkable
class Loader(Protocol):
    """Global batches of a run, in order.

    Rows of a batch have one length, which may differ from batch to batch: each length
    is compiled once.
    """

    batch_size: int

    @property
    def num_batches(self) -> int | None:
        """Number of batches of a finite loader; None: infinite."""

    def batch(
        self, index: int, rows: slice | np.ndarray = ...
    ) -> dict[str, np.ndarray]:
        """Part of global batch `index`."""

    def example_ids(self, index: int) -> Sequence[str]:
        """Ids of the records of a batch."""

    def state(self, next_index: int) -> dict[str, Any]:
        """State for `restore` to continue with batch `next_index`; plain JSON."""

    def restore(self, state: Mapping[str, Any]) -> int:
        """Restores a state; returns the index of the next batch."""


@runtime_checkable
class TokenLoader(Loader, Protocol):
    """A loader whose targets are tokens; see `data.rows.loader.RowLoader`."""

    @property
    def vocab_size(self) -> int:
        """Ids in a batch are from 0 to `vocab_size` - 1."""

    @property
    def unigram_entropy(self) -> float:
        """Loss in nats of a model that predicts token frequencies only."""


def shape_of(entry: Shaped | Sequence[int]) -> tuple[int, ...]:
    """The shape of an object that has one, or the shape itself."""
    return tuple(entry.shape if isinstance(entry, Shaped) else entry)
