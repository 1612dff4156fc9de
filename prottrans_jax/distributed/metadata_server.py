"""The metadata server of a virtual machine on Compute Engine.

Its address is in `GCE_METADATA_HOST` (HOST or HOST:PORT), as for Google's own
libraries, otherwise in `GCE_METADATA_IP`, as for JAX, otherwise the usual one. See
https://cloud.google.com/compute/docs/metadata/querying-metadata.
"""

from collections.abc import Mapping
import time
from typing import Any
import urllib.error
import urllib.request

# The first one that is set counts. JAX reads the last one only.
VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_IP")
_ADDRESS = "metadata.google.internal"
_ATTEMPTS = 3


class MetadataError(Exception):
    """The metadata of a virtual machine cannot be read."""


def address(environ: Mapping[str, str]) -> str:
    """HOST or HOST:PORT of the metadata server."""
    return next((environ[name] for name in VARIABLES if environ.get(name)), _ADDRESS)


def get(server: str, path: str, timeout_s: float) -> Any:
    """Opens a value below `instance/`; the result has `read` and `headers`.

    Raises:
      OSError: the server cannot be reached, or answers with an error.
    """
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/{path}",
        headers={"Metadata-Flavor": "Google"},
    )
    # The server is in the machine's own network: no proxy reaches it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=timeout_s)


def read_attribute(key: str, environ: Mapping[str, str]) -> str:
    """An attribute of this virtual machine; "" if it has none of this name.

    Raises:
      MetadataError: No metadata server answers.
    """
    server = address(environ)
    error: Exception | None = None
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        try:
            with get(server, f"attributes/{key}", timeout_s=10) as reply:
                return reply.read().decode()
        except urllib.error.HTTPError as answered:
            if answered.code == 404:
                return ""
            error = answered
        except OSError as unreachable:
            error = unreachable
    raise MetadataError(f"the metadata server {server} does not answer: {error}")
