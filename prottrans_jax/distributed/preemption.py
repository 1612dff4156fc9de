"""Notices of a pre-emption or host maintenance from Google Cloud's metadata server.

Compute Engine and TPU VMs announce a pre-emption some 30 s, and a maintenance that ends
the machine up to an hour, before it is switched off. See
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption.
"""

from collections.abc import Callable
import contextlib
import http.client
import os
import threading
import urllib.parse

from absl import logging

from prottrans_jax.distributed import metadata_server

# Name of a value to the value that announces the end of this machine. A machine that
# is migrated (MIGRATE_ON_HOST_MAINTENANCE) goes on.
_ENDS = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
# The server answers when the value changes, or after this time.
_WAIT_S = 60


class MetadataNotices(contextlib.AbstractContextManager):
    """Watches the metadata server while the body of the context runs.

    A server that cannot be reached does not end the run: it is logged once, and asked
    again.

    Args:
      on_notice: called once for each kind of notice, in a thread, with a line that
        says what the server announces. A maintenance announced before the context
        began is only logged: the run was started on that machine all the same.
      retry_s: wait after a failed request.
    """

    def __init__(self, on_notice: Callable[[str], object], retry_s: float = 5.0):
        self._on_notice = on_notice
        self._retry_s = retry_s
        self._server = metadata_server.address(os.environ)
        self._closed = threading.Event()

    def __enter__(self) -> "MetadataNotices":
        for name in _ENDS:
            threading.Thread(
                target=self._watch, args=(name,), name=f"notice_{name}", daemon=True
            ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # The threads end with their pending request, which nobody waits for.
        self._closed.set()

    def _watch(self, name: str) -> None:
        etag: str | None = None
        failed = False
        while not self._closed.is_set():
            is_first = etag is None
            try:
                value, etag = self._get(name, etag)
            except (OSError, http.client.HTTPException) as error:
                if not failed:
                    logging.warning(
                        "The metadata server %s cannot be asked for %r (%s): its "
                        "notices are not seen. Trying again every %g s.",
                        *(self._server, name, error, self._retry_s),
                    )
                failed = True
                self._closed.wait(self._retry_s)
                continue
            failed = False
            if value != _ENDS[name] or self._closed.is_set():
                continue
            if is_first and name == "maintenance-event":
                logging.warning("A maintenance of this machine is already announced.")
                continue
            self._on_notice(f"the metadata server announces {name}={value}")
            return

    def _get(self, name: str, etag: str | None) -> tuple[str, str]:
        """The value, and the tag of its version; with a tag, waits for another one."""
        path = name
        if etag is not None:
            query = {"wait_for_change": "true", "timeout_sec": str(_WAIT_S)}
            path += "?" + urllib.parse.urlencode({**query, "last_etag": etag})
        with metadata_server.get(self._server, path, _WAIT_S + 15) as answer:
            value = answer.read().decode().strip()
            return value, answer.headers.get("ETag", "0")
