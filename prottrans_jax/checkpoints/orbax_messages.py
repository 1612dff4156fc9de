"""Messages of Orbax and tensorstore that repeat what an error says are dropped."""

from collections.abc import Callable
import logging as std_logging
import sys
from typing import Any

from absl import logging


def drop_repeated() -> None:
    """Installs the filters, once for the process."""
    logging.get_absl_logger().addFilter(_drop_orbax_chatter)
    if not isinstance(sys.unraisablehook, _DropTensorstoreChatter):
        sys.unraisablehook = _DropTensorstoreChatter(sys.unraisablehook)


def _drop_orbax_chatter(record: std_logging.LogRecord) -> bool:
    """Filter of log records: of Orbax's, only warnings without a traceback pass.

    Orbax raises the errors whose tracebacks it logs.
    """
    if "/orbax/" not in record.pathname:
        return True
    return record.levelno >= std_logging.WARNING and not record.exc_info


class _DropTensorstoreChatter:
    """`sys.unraisablehook` that drops one error and passes on all others.

    When an array cannot be written, Orbax raises the error and closes its event loop.
    For each of the other arrays tensorstore then prints a traceback, because the loop
    is closed.
    """

    def __init__(self, next_hook: Callable[["sys.UnraisableHookArgs"], Any]):
        self._next_hook = next_hook

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if (
            unraisable.object is not None
            or str(unraisable.exc_value) != "Event loop is closed"
        ):
            self._next_hook(unraisable)
