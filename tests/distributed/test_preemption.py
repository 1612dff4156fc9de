"""Notices of a metadata server on this machine stop a run with a checkpoint."""

import contextlib
import http.server
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from cases import process_cases
from prottrans_jax.distributed import preemption, stopping

PREFIX = "/computeMetadata/v1/instance/"


class Server(http.server.ThreadingHTTPServer):
    """A metadata server that answers like Google's, with values that a test sets."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.versions = dict.fromkeys(self.values, 1)
        self.changed = threading.Condition()
        self.requests = queue.Queue()

    def set(self, name, value):
        with self.changed:
            self.values[name] = value
            self.versions[name] += 1
            self.changed.notify_all()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        server, name = self.server, url.path.removeprefix(PREFIX)
        server.requests.put((name, query))
        if self.headers["Metadata-Flavor"] != "Google" or name not in server.values:
            return self.send_error(403)
        with server.changed:
            if query.get("wait_for_change") == "true":
                server.changed.wait_for(
                    lambda: str(server.versions[name]) != query["last_etag"],
                    timeout=int(query["timeout_sec"]),
                )
            body = server.values[name].encode()
            etag = str(server.versions[name])
        self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *unused):
        pass


@pytest.fixture
def server(monkeypatch, request):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"localhost:{server.server_address[1]}"
    monkeypatch.setenv(getattr(request, "param", "GCE_METADATA_HOST"), address)
    # A proxy must not be asked.
    monkeypatch.setenv("http_proxy", "http://localhost:1")
    yield server
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def notices():
    seen = queue.Queue()
    with preemption.MetadataNotices(seen.put, retry_s=0.1):
        yield seen


def wait_until_watched(server):
    waiting = set()
    while waiting != {"preempted", "maintenance-event"}:
        name, query = server.requests.get(timeout=20)
        if "wait_for_change" in query:
            waiting.add(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_the_end_of_the_machine_is_noticed_at_once(server, name, value):
    with notices() as seen:
        wait_until_watched(server)
        server.set(name, value)
        line = seen.get(timeout=5)
    assert f"{name}={value}" in line


def test_a_migration_and_a_maintenance_announced_before_are_no_notice(server):
    server.set("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    with notices() as seen:
        wait_until_watched(server)
        server.set("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        name, _ = server.requests.get(timeout=20)  # It is watched on.
        assert name == "maintenance-event"
        assert seen.empty()


@pytest.mark.parametrize(
    "server", ["GCE_METADATA_HOST", "GCE_METADATA_IP"], indirect=True
)
def test_a_machine_that_is_pre_empted_already_stops_at_once(server):
    server.set("preempted", "TRUE")
    with notices() as seen:
        assert "preempted=TRUE" in seen.get(timeout=5)


def test_a_server_that_cannot_be_reached_is_named_once(monkeypatch, caplog):
    monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{process_cases.free_port()}")
    with notices() as seen:
        time.sleep(1)
    assert seen.empty()
    assert caplog.text.count("'preempted'") == 1


def test_a_requested_stop_counts_as_sigterm():
    with stopping.StopSignal() as stop:
        stop.request("a test")
        assert stop.should_stop(1)
    assert stop.exit_code == 128 + signal.SIGTERM


# Runs for minutes unless it is stopped.
RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from cases import runs, trainer_cases
arguments = trainer_cases.arguments(pathlib.Path(sys.argv[1]), total_steps=10**6)
arguments |= {"checkpoints_period": 10**6, "evaluation_period": 10**6}
sys.exit(runs.train(**arguments, notices_metadata_server=True).exit_code)
"""


def test_a_pre_empted_run_ends_with_a_committed_checkpoint_within_30_s(
    server, tmp_path
):
    tests = pathlib.Path(__file__).resolve().parents[1]
    log = tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path, tests],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 240
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    server.set("preempted", "TRUE")
    begin = time.monotonic()
    _, messages = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert process.returncode == 143, messages[-3000:]
    assert "preempted=TRUE: saving a checkpoint" in messages
    steps = [int(p.parent.name) for p in tmp_path.glob("run/checkpoints/*/sha256.json")]
    assert max(steps) > 0
