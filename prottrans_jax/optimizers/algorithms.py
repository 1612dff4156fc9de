"""Adafactor, LAMB and AdamW, with the papers' names: settings that build optax.

A layer of a scanned stack (logical axis "layers") is treated like a single layer: root
mean squares, trust ratios and second moments never mix layers.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree
import optax

from prottrans_jax.config import setting_types
from prottrans_jax.optimizers import adafactor, schedules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base class of the optimizers.

    Attributes:
      learning_rate: A number, or a function from step to number (see `schedules`).
      clip_norm: Gradients with a larger global norm are scaled down to this norm first;
        None: no clipping.

    Raises:
      ValueError: A number is out of range, here and in the derived classes.
    """

    learning_rate: float | Callable[[Any], Any]
    clip_norm: float | None = None

    def __post_init__(self):
        if not callable(self.learning_rate):
            self._check("learning_rate")
        self._check("clip_norm", exclusive=True)

    def _check(self, *names: str, **limits: Any) -> None:
        """Raises unless each number is at least 0, or within other `limits`."""
        for name in names:
            setting_types.check_range(
                f"{type(self).__name__}.{name}", getattr(self, name), **limits
            )

    def learning_rate_at(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """Learning rate of the update from `step` to `step` + 1."""
        return jnp.asarray(self._schedule(step), jnp.float32)

    def build(self, axes: PyTree) -> optax.GradientTransformation:
        """Builds the optimizer for parameters with these logical axes.

        Args:
          axes: Tuples of logical axis names (or None), in a tree like the parameters.
        """
        inner = self._build(axes)
        if self.clip_norm is None:
            return inner
        limit = self.clip_norm

        def update(
            grads: PyTree, state: optax.OptState, params: PyTree | None = None
        ) -> Any:
            scale = jnp.minimum(1.0, limit / optax.tree.norm(grads))
            return inner.update(jax.tree.map(lambda g: g * scale, grads), state, params)

        # Not optax.chain: names in the state must not depend on clipping.
        return optax.GradientTransformation(inner.init, update)

    def state_axes(self, params: PyTree, axes: PyTree) -> PyTree:
        """Logical axes of the state, in a tree like `build(axes).init(params)`.

        Args:
          params: Parameters or their `jax.ShapeDtypeStruct`s.
          axes: As for `build`.
        """
        transform = self.build(axes)
        return optax.tree_map_params(
            transform,
            lambda _, axes: axes,
            jax.eval_shape(transform.init, params),
            axes,
            transform_non_params=lambda leaf: (None,) * len(leaf.shape),
        )

    def _build(self, axes: PyTree) -> optax.GradientTransformation:
        raise NotImplementedError

    @property
    def _schedule(self) -> Callable[[Any], Any]:
        rate = self.learning_rate
        return rate if callable(rate) else schedules.Constant(rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor (Shazeer & Stern 2018) as in T5X, with T5X's names of fields.

    Attributes:
      factored: Whether second moments of matrices are stored as rows and columns.
      multiply_by_parameter_scale: Whether the learning rate is relative to the root
        mean square of each parameter.
      beta1: Decay of the momentum of scaled updates; None: no momentum.
      decay_rate: Second moments decay by 1 - (step + 1 - step_offset)^-decay_rate.
      step_offset: Step at which the second moments start, for fine-tuning.
      clipping_threshold: Largest root mean square of an update, before the learning
        rate; None: no limit.
      weight_decay_rate: Fraction of every parameter subtracted at each step.
      weight_decay_rate_lr_exponent: If set, that fraction is multiplied by the learning
        rate to this power.
      min_dim_size_to_factor: Matrices with fewer rows or columns are not factored.
      epsilon1: Added to squared gradients.
      epsilon2: Lower limit of the root mean square of a parameter.
      dtype_momentum: Type of the momentum.
    """

    factored: bool = True
    multiply_by_parameter_scale: bool = True
    beta1: float | None = None
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    weight_decay_rate: float | None = None
    weight_decay_rate_lr_exponent: float | None = None
    min_dim_size_to_factor: int = 128
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    dtype_momentum: DTypeLike = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        self._check("beta1", below=1)
        self._check("decay_rate", "weight_decay_rate", "epsilon2")
        self._check("clipping_threshold", "epsilon1", exclusive=True)

    @property
    def _hyper(self) -> adafactor.Hyperparameters:
        names = (field.name for field in dataclasses.fields(adafactor.Hyperparameters))
        return adafactor.Hyperparameters(
            **{name: getattr(self, name) for name in names}
        )

    def _build(self, axes: PyTree) -> optax.GradientTransformation:
        return adafactor.scale_by_adafactor(self._schedule, axes, self._hyper)

    def state_axes(self, params: PyTree, axes: PyTree) -> PyTree:
        """As `Optimizer.state_axes`; v_row and v_col have a part of the axes."""
        return adafactor.state_axes(params, axes, self._hyper)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); BERT's constants.

    Attributes:
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the square root of the second moment.
      weight_decay: Fraction of each parameter subtracted per step, times the learning
        rate. Not applied to biases and norm scales.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        self._check("b1", "b2", below=1)
        self._check("weight_decay")
        self._check("eps", exclusive=True)

    def _build(self, axes: PyTree) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=is_weight),
            optax.scale_by_learning_rate(self._schedule),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamb(AdamW):
    """LAMB (You et al. 2020, algorithm 2), the optimizer of ProtBert.

    AdamW with the update of each layer scaled to the norm of the layer's parameter.
    Biases and norm scales have neither decay nor scaling, as in the authors' code.
    (optax.lamb scales them too, and treats a scanned stack as one layer.)
    """

    def _build(self, axes: PyTree) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=is_weight),
            _scale_by_trust_ratio(axes),
            optax.scale_by_learning_rate(self._schedule),
        )


def is_weight(params: PyTree) -> PyTree:
    """True for parameters with weight decay: names not ending in bias or scale."""
    return adafactor.map_named(
        lambda name, _: not name.rpartition("/")[2].endswith(("bias", "scale")), params
    )


def _scale_by_trust_ratio(axes: PyTree) -> optax.GradientTransformation:
    """Scales by |parameter| / |update| per layer of a stack; by 1 if a norm is 0."""

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> Any:
        if params is None:
            raise ValueError("LAMB needs the parameters: update(grads, state, params).")

        def scale(
            _: str,
            param: Array,
            axes: adafactor.LogicalAxes | None,
            update: Array,
            is_weight: bool,
        ) -> Array:
            if not is_weight:
                return update
            axes = axes or (None,) * update.ndim
            dims = tuple(d for d, axis in enumerate(axes) if axis != "layers")

            def norm(x: Array) -> Array:
                x = x.astype(jnp.float32)
                return jnp.sqrt(jnp.sum(x * x, axis=dims, keepdims=True))

            param_norm, update_norm = norm(param), norm(update)
            usable = (param_norm > 0.0) & (update_norm > 0.0)
            return update * jnp.where(
                usable, param_norm / jnp.where(usable, update_norm, 1.0), 1.0
            )

        scaled = adafactor.map_named(scale, params, axes, updates, is_weight(params))
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
