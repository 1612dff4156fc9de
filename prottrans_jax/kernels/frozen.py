"""Whether programs are traced for frozen models on one device.

Only then may products, attention and norms use kernels that have no gradients.
"""

from collections.abc import Iterator
import contextlib
import threading

import jax

_local = threading.local()


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Context in which programs are traced for frozen models.

    The caller must ensure that the positions of a segment are contiguous.
    """
    before = getattr(_local, "active", False)
    _local.active = True
    try:
        yield
    finally:
        _local.active = before


def is_active() -> bool:
    """Whether tracing happens within `scope`, for one device."""
    one_device = jax.sharding.get_abstract_mesh().size <= 1
    return one_device and getattr(_local, "active", False)
