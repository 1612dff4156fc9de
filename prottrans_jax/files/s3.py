"""S3 and compatible stores through s3fs, with errors that name the object.

s3fs makes up to 5 tries of each request if the connection breaks or an answer is
incomplete; below it, botocore makes 4 more if the server fails (status 429, 5xx), with
exponential and random pauses.
"""

import errno
import os
from typing import Any

from fsspec import asyn
import s3fs

from prottrans_jax.files import buckets

_TRIES = 5
_NOT_MET = ("PreconditionFailed", "ConditionalRequestConflict", "412")


class FileSystem(s3fs.S3FileSystem):
    """s3fs whose errors are OSErrors with the URL of the object and the reason."""

    protocol = ("s3", "s3a")

    def __init__(self, *args: Any, config_kwargs: Any = None, **kwargs: Any):
        retries = {"mode": "standard", "max_attempts": _TRIES}
        super().__init__(
            *args, config_kwargs={"retries": retries, **(config_kwargs or {})}, **kwargs
        )

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except Exception as error:
            raise _explained(error, method, _url(args, kwargs)) from error

    # s3fs bound its own `_call_s3`.
    call_s3 = asyn.sync_wrapper(_call_s3)

    async def _read_version(self, name: str) -> tuple[bytes, str] | None:
        """As in `gcs.FileSystem`."""
        bucket, key, _ = self.split_path(name)
        try:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
            return await answer["Body"].read(), answer["ETag"]
        except FileNotFoundError:
            return None

    async def _write_version(
        self, name: str, data: bytes, version: str | None
    ) -> str | None:
        """As in `gcs.FileSystem`."""
        bucket, key, _ = self.split_path(name)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            answer = await self._call_s3(
                "put_object", Bucket=bucket, Key=key, Body=data, **condition
            )
        except FileExistsError:
            return None
        except FileNotFoundError:
            if version is None:  # There is no such bucket.
                raise
            return None
        return answer["ETag"]

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Does nothing: there are no folders, and a bucket is not created."""

    _makedirs = _mkdir
    mkdir = asyn.sync_wrapper(_mkdir)
    makedirs = asyn.sync_wrapper(_mkdir)

    read_version = asyn.sync_wrapper(_read_version)
    write_version = asyn.sync_wrapper(_write_version)


def _url(args: tuple, kwargs: dict[str, Any]) -> str:
    """URL of the object or prefix of a request."""
    request: dict[str, Any] = {}
    for part in (*args, kwargs):
        request.update(part if isinstance(part, dict) else {})
    name = request.get("Key") or request.get("Prefix") or ""
    return f"s3://{request.get('Bucket', '')}/{name}"


def _explained(error: Exception, method: str, url: str) -> OSError:
    answer = getattr(error, "response", None) or getattr(
        error.__cause__, "response", {}
    )
    code = str(answer.get("Error", {}).get("Code", ""))
    if code in _NOT_MET or isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), url)
    if isinstance(error, FileNotFoundError):
        reason = os.strerror(errno.ENOENT)
        if code == "NoSuchBucket":
            reason = "There is no such bucket"
        return FileNotFoundError(errno.ENOENT, reason, url)
    first_line = buckets.first_line(str(error) or type(error).__name__)
    if isinstance(error, PermissionError) or type(error).__name__.startswith(
        "NoCredentials"
    ):
        return PermissionError(
            errno.EACCES,
            f"{os.strerror(errno.EACCES)} ({method}: {first_line}). Give this account "
            "access to the bucket, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            url,
        )
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 429 or status >= 500:
        return OSError(
            errno.EIO,
            f"{_TRIES} tries of {method} failed, the last with status {status} "
            f"({first_line}). The storage is not available: try again later",
            url,
        )
    if isinstance(error, OSError) and error.errno is not None:
        reason = buckets.first_line(error.strerror or first_line)
        return OSError(error.errno, f"{method}: {reason}", url)
    return OSError(
        errno.EIO, f"{method} failed: {type(error).__name__}: {first_line}", url
    )
