"""Where Orbax's arrays go in a bucket: tensorstore's drivers, with limited tries.

Orbax 0.12 knows gs:// only, and its tensorstore tries a failing request for a quarter
of an hour. `prepare` replaces the three functions with which it turns a URL into
tensorstore's specification. Their names and the specification are private to Orbax,
whose version the extras `gcs` and `s3` limit; nothing is imported for other places.
"""

import os
from typing import Any
import urllib.parse

from prottrans_jax.files import buckets

# With exponential and random pauses: a minute in all, about as in gcsfs.
_RETRIES = {"max_retries": 8, "initial_delay": "1s", "max_delay": "16s"}
# By default tensorstore waits without limit on a connection that is dead.
_DEAD_CONNECTION = {
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}


def prepare(place: str | os.PathLike) -> type | None:
    """Lets Orbax read and write arrays in a bucket.

    Args:
      place: where the arrays are; nothing is done for one on this machine.

    Returns:
      For a bucket, Orbax's class for a folder that is committed with an object instead
      of a rename. Otherwise None: Orbax chooses.

    Raises:
      ImportError: another version of Orbax is installed.
    """
    if not buckets.is_bucket(place):
        return None
    from orbax.checkpoint._src.path import atomicity, gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for name, value in _DEAD_CONNECTION.items():
        os.environ.setdefault(name, value)
    for module, replaced, function in (
        (tensorstore_utils, "_use_gcs_driver", buckets.is_bucket),
        (tensorstore_utils, "_normalize_path", _normalized),
        (gcs_utils, "get_kvstore_for_gcs", kvstore),
    ):
        if not hasattr(module, replaced):
            raise ImportError(
                f"{place}: this version of Orbax cannot write to buckets: "
                "pip install 'orbax-checkpoint>=0.12.8,<0.13'"
            )
        setattr(module, replaced, function)
    return atomicity.CommitFileTemporaryPath


def kvstore(url: str) -> dict[str, Any]:
    """Specification of tensorstore's key-value store of a folder in a bucket."""
    parts = urllib.parse.urlsplit(url)
    spec: dict[str, Any] = {"bucket": parts.netloc, "path": parts.path.lstrip("/")}
    if parts.scheme == "gs":
        return {"driver": "gcs", **spec, "gcs_request_retries": _RETRIES}
    spec |= {"driver": "s3", "s3_request_retries": _RETRIES}
    # botocore, which s3fs uses, reads these itself.
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
        "AWS_ENDPOINT_URL"
    ):
        spec["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    return spec


def _normalized(path: str) -> str:
    if buckets.is_bucket(path):
        return buckets.normalized(path)
    return os.path.normpath(path)
