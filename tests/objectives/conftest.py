"""What tests of several objectives use."""

import functools

import jax
import pytest


@pytest.fixture(scope="module")
def step(objective):
    """Loss, metrics and gradients of the module's `objective` on a batch, compiled."""

    @functools.partial(
        jax.jit,
        static_argnames="train",
        # Compilation is most of the time.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    def step(params, batch, normalizers, train=False):
        def loss(params):
            rng = jax.random.key(3)
            return objective(params, batch, normalizers, (), rng, train=train)

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step
