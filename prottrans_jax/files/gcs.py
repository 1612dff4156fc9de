"""Google Cloud Storage through gcsfs, with errors that name the object.

gcsfs makes up to 6 tries of each request, with exponential and random pauses of half a
minute in all, if the server fails (status 408, 429, 5xx), the connection breaks, or an
answer is incomplete.
"""

import errno
import json
import os
import re
from typing import Any
import urllib.parse

from fsspec import asyn
from gcsfs import core, retry

from prottrans_jax.files import buckets

_BOUNDARY = "==prottrans=="
_NO_OBJECT = "0"  # The generation of an object that does not exist.


class FileSystem(core.GCSFileSystem):
    """gcsfs whose errors are OSErrors with the URL of the object and the reason."""

    async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call(method, path, *args, **kwargs)
        except Exception as error:
            raise _explained(error, method, _url(path, args, kwargs)) from error

    # gcsfs bound its own `_call`.
    call = asyn.sync_wrapper(_call)

    async def _read_version(self, name: str) -> tuple[bytes, str] | None:
        """Content of an object and the version of it; None: there is no object.

        Raises:
          OSError: the request failed.
        """
        bucket, key, _ = self.split_path(name)
        try:
            headers, content = await self._call(
                "GET", "b/{}/o/{}", bucket, key, alt="media"
            )
        except FileNotFoundError:
            return None
        return bytes(content), headers["x-goog-generation"]

    async def _write_version(
        self, name: str, data: bytes, version: str | None
    ) -> str | None:
        """Writes an object only if its version is still the given one.

        Args:
          name: of the object.
          data: its new content, which differs from the present one.
          version: from `read_version` or `write_version`; None: only if there is no
            object.

        Returns:
          The new version; None: the object has another version and was not written.

        Raises:
          OSError: the request failed.
        """
        bucket, key, _ = self.split_path(name)
        about = json.dumps({"name": key}).encode()
        body = b"".join(
            b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (_BOUNDARY.encode(), kind, part)
            for kind, part in (
                (b"application/json; charset=UTF-8", about),
                (b"application/octet-stream", data),
            )
        )
        try:
            answer = await self._call(
                "POST",
                f"{self._location}/upload/storage/v1/b/{core.quote(bucket)}/o",
                uploadType="multipart",
                ifGenerationMatch=version or _NO_OBJECT,
                headers={
                    "Content-Type": f'multipart/related; boundary="{_BOUNDARY}"',
                },
                data=body + f"--{_BOUNDARY}--".encode(),
                json_out=True,
            )
        except FileExistsError:
            return None
        return str(answer["generation"])

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Does nothing: there are no folders, and a bucket is not created."""

    _makedirs = _mkdir
    mkdir = asyn.sync_wrapper(_mkdir)
    makedirs = asyn.sync_wrapper(_mkdir)

    read_version = asyn.sync_wrapper(_read_version)
    write_version = asyn.sync_wrapper(_write_version)


def _url(path: str, args: tuple, kwargs: dict[str, Any]) -> str:
    """URL of the object or bucket of a request."""
    if args:
        return "gs://" + "/".join(str(arg) for arg in args[:2])
    match = re.search(r"/b/([^/]+)/o(?:/([^?]+))?", path)
    if not match:
        return path
    # The name of an upload is in its body or query.
    data = kwargs.get("data")
    start = bytes(data[:4096]) if isinstance(data, bytes | bytearray) else b""
    named = re.search(rb'"name": "([^"]+)"', start)
    key = match[2] or (named[1].decode() if named else kwargs.get("name", ""))
    key = key or (kwargs.get("json") or {}).get("name", "")
    return f"gs://{match[1]}/{urllib.parse.unquote(key)}"


def _explained(error: Exception, method: str, url: str) -> OSError:
    status = getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        reason = os.strerror(errno.ENOENT)
        if method == "POST":  # An upload creates the object.
            reason = "There is no such bucket"
        return FileNotFoundError(errno.ENOENT, reason, url)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), url)
    first_line = buckets.first_line(str(error) or type(error).__name__)
    if str(status) in ("401", "403") or first_line.startswith("Forbidden"):
        return PermissionError(
            errno.EACCES,
            f"{os.strerror(errno.EACCES)} ({method}: {first_line}). Give this account "
            "access to the bucket, or log in: gcloud auth application-default login",
            url,
        )
    if status in retry.errs:
        tries = f"{core.GCSFileSystem.retries} tries of {method} failed, the last with "
        return OSError(
            errno.EIO,
            f"{tries}status {status} ({first_line}). The storage is not available: "
            "try again later",
            url,
        )
    if isinstance(error, OSError) and error.errno is not None:
        reason = buckets.first_line(error.strerror or first_line)
        return OSError(error.errno, reason, url)
    return OSError(
        errno.EIO, f"{method} failed: {type(error).__name__}: {first_line}", url
    )
