"""Loss of a head on labelled proteins: cross entropy, or squared error."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prottrans_jax import types
from prottrans_jax.objectives import losses


class Vectors(Protocol):
    """From a batch to the vectors that the head sees; see `FrozenVectors`."""

    @property
    def d_model(self) -> int:
        """Size of a vector."""

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used."""

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """Parameters, besides those of the head; empty if there are none."""

    def __call__(
        self, params: types.Params, batch: types.Batch, rng: jax.Array, *, train: bool
    ) -> tuple[Float[Array, "batch length d_model"], Bool[Array, "batch length"]]:
        """Vectors, and where they are those of residues."""

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """FLOPs of a training step without the head."""


@dataclasses.dataclass(frozen=True)
class FrozenVectors:
    """Vectors of a frozen encoder, computed before training.

    Attributes:
      d_model: Size of a vector.
      encoder: Fingerprint of the encoder.
    """

    d_model: int
    encoder: str

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used."""
        return ("vectors", "lengths")

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """No parameters."""
        del rng, batch_shapes
        return {}

    def __call__(
        self, params: types.Params, batch: types.Batch, rng: jax.Array, *, train: bool
    ) -> tuple[Float[Array, "batch length d_model"], Bool[Array, "batch length"]]:
        """Vectors in float32, and their mask."""
        del params, rng, train
        vectors = batch["vectors"]
        mask = jnp.arange(vectors.shape[1]) < batch["lengths"][:, None]
        return vectors.astype(jnp.float32), mask

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """None: the vectors are inputs."""
        del batch_shapes
        return 0.0


@dataclasses.dataclass(frozen=True)
class HeadObjective:
    """Loss of a head: the mean over all labels of the batch that count.

    Features of a batch besides those of `vectors`: labels and label_weights, [rows,
    length] for tasks of residues and [rows] for those of proteins. A weight of 0 leaves
    a label out: padding, unresolved residues, proteins without a label.

    Attributes:
      head: Linen module, see `heads`.
      vectors: Gives the vectors of a batch.
      is_regression: Labels are numbers; the loss is the squared error. Otherwise they
        are classes, and it is the cross entropy in nats.
    """

    head: nn.Module
    vectors: Vectors
    is_regression: bool

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used."""
        return (*self.vectors.features, "labels", "label_weights")

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """Parameters of the head as "head", besides those of `vectors`."""
        of_vectors, of_head = jax.random.split(rng)
        x = jnp.zeros((1, 1, self.vectors.d_model))
        head = self.head.init(of_head, x, jnp.ones((1, 1), bool), deterministic=True)[
            "params"
        ]
        return {"head": head, **self.vectors.init(of_vectors, batch_shapes)}

    def initial_carry(self, batch_size: int) -> types.Carry:
        """Empty: nothing is carried from step to step."""
        del batch_size
        return ()

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sum of the weights of the labels."""
        return {"labels": losses.total(batch["label_weights"])}

    def outputs(
        self, params: types.Params, batch: types.Batch, rng: jax.Array, *, train: bool
    ) -> Float[Array, "batch *length outputs"]:
        """Outputs of the head, float32."""
        of_vectors, of_head = jax.random.split(rng)
        x, mask = self.vectors(params, batch, of_vectors, train=train)
        apply: Any = self.head.apply
        return apply(
            {"params": params["head"]},
            x,
            mask,
            deterministic=not train,
            rngs={"dropout": of_head} if train else None,
        )

    def __call__(
        self,
        params: types.Params,
        batch: types.Batch,
        normalizers: Mapping[str, Float[Array, ""]],
        carry: types.Carry,
        rng: jax.Array,
        *,
        train: bool,
    ) -> tuple[Float[Array, ""], tuple[types.Metrics, types.Carry]]:
        """Loss of a batch or microbatch; as `objectives.objective.Objective`."""
        outputs = self.outputs(params, batch, rng, train=train)
        labels, weights = batch["labels"], batch["label_weights"]
        metrics: types.Metrics = {}
        if self.is_regression:
            # NaN: no label. Its weight is 0, but 0 * NaN is NaN.
            errors = jnp.square(outputs[..., 0] - jnp.nan_to_num(labels))
        else:
            entropy = losses.softmax_cross_entropy(outputs, labels)
            errors = entropy.nll
            metrics["accuracy"] = losses.weighted(entropy.correct, weights)
        metrics["loss"] = losses.weighted(errors, weights)
        loss = losses.divide(losses.total(errors * weights), normalizers["labels"])
        metrics["residues"] = (losses.total(batch["lengths"]), jnp.zeros(()))
        return loss, (metrics, carry)

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """FLOPs of a training step; every parameter of the head counts per position."""
        shapes = jax.eval_shape(lambda: self.init(jax.random.key(0), batch_shapes))
        size = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["head"]))
        positions = math.prod(types.shape_of(batch_shapes["labels"]))
        return 6.0 * size * positions + self.vectors.flops(batch_shapes)
