"""A host that is lost is named by the others, which end."""

import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from prottrans_jax.distributed import peers


class Run:
    """Processes of one run as threads of the test; `ended[n]` is what n would print."""

    def __init__(self, count, tmp_path, **limits):
        self.ended = [queue.Queue() for _ in range(count)]
        self.address = queue.Queue()
        self.count, self._tmp_path, self._limits = count, tmp_path, limits

    def peers(self, process):
        def exchange(address):
            if process == 0:
                for _ in range(self.count - 1):
                    self.address.put(
                        address.replace(address.split(":")[0], "localhost")
                    )
                return address
            return self.address.get(timeout=20)

        details = self._tmp_path / f"details.{process}"
        end = self.ended[process].put
        return peers.Peers(
            process,
            self.count,
            f"host{process}",
            exchange,
            details,
            end,
            peers.Limits(**self._limits),
        )


def test_a_killed_process_is_named_by_all_others(tmp_path):
    run = Run(3, tmp_path)
    zero, one = run.peers(0), run.peers(1)
    with zero, one:
        zero.step = 41
        address = run.address.get(timeout=20)
        code = (
            "import sys, time; from prottrans_jax.distributed import peers; "
            "p = peers.Peers(2, 3, 'host2', lambda _: sys.argv[1], 'd'); "
            "p.__enter__(); print('in', flush=True); time.sleep(60)"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "in\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        first = run.ended[0].get(timeout=20)
        other = run.ended[1].get(timeout=20)
    assert first.startswith("error: step 41: process 2 (host2) is gone.")
    assert "Start the same command again on all hosts" in first
    assert "process 2 (host2) is gone" in other
    assert first.count("\n") == other.count("\n") == 0


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_host_that_is_switched_off_ends_the_connection_to_it(tmp_path):
    run = Run(2, tmp_path)
    with run.peers(0) as zero, run.peers(1) as one:
        while not zero._last_messages:
            time.sleep(0.01)
        for link in (*zero._links, *one._links):
            limit = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit == 100_000  # milliseconds


def test_processes_that_end_by_themselves_are_not_missed(tmp_path):
    run = Run(2, tmp_path)
    with run.peers(0), run.peers(1):
        pass
    with pytest.raises(queue.Empty):
        run.ended[0].get(timeout=0.5)
    assert run.ended[1].empty()


def test_failed_collective_is_one_line_and_its_traceback_a_file(tmp_path):
    run = Run(2, tmp_path, grace_s=0.0)
    zero, one = run.peers(0), run.peers(1)
    with zero, pytest.raises(ValueError, match="Gloo"), one:
        one.step = 7
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    line = run.ended[1].get(timeout=20)
    assert line.startswith("error: step 7: a collective failed on process 1 (host1)")
    assert str(tmp_path / "details.1") in line and line.count("\n") == 0
    assert "Gloo all-reduce" in (tmp_path / "details.1").read_text()


def test_mistakes_of_the_user_are_no_lost_host():
    assert peers.is_collective(ValueError("UNKNOWN: Gloo all-reduce failed"))
    assert not peers.is_collective(ValueError("UNKNOWN is not a task."))
    assert not peers.is_collective(KeyError("INTERNAL: x"))


def test_a_run_of_one_process_watches_nobody(tmp_path):
    threads = threading.active_count()
    with Run(1, tmp_path).peers(0):
        assert threading.active_count() == threads


STOPPED = (
    "import sys, time; from prottrans_jax.distributed import peers; "
    "p = peers.Peers(2, 3, 'host2', lambda _: sys.argv[1], 'd'); p.step = 41; "
    "p.__enter__(); time.sleep(3); print('in', flush=True); time.sleep(60)"
)


def test_a_stopped_process_is_named_by_all_that_wait_for_it(tmp_path):
    run = Run(3, tmp_path, beat_s=0.1, silent_s=2.0)
    zero, one = run.peers(0), run.peers(1)
    with zero, one:
        address = run.address.get(timeout=20)
        child = subprocess.Popen(
            [sys.executable, "-c", STOPPED, address], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "in\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(3)
        first = zero.report_hang()
        other = run.ended[1].get(timeout=20)
        child.kill()
        child.wait()
        child.stdout.close()
    assert first.startswith("process 2 (host2) hangs: it has sent nothing for")
    assert first.endswith("since step 41")
    assert first in other and other.startswith("error: step 0: process 2 (host2) hangs")


def test_a_process_at_an_earlier_step_is_the_one_that_hangs(tmp_path):
    run = Run(3, tmp_path, beat_s=0.1)
    zero, one, two = run.peers(0), run.peers(1), run.peers(2)
    zero.step, one.step, two.step = 8, 8, 7
    with zero, one, two:
        time.sleep(1)
        # Process 0 told it: the others have no connection to process 2.
        assert one.report_hang() == (
            "process 2 (host2) hangs: it is at step 7, others at 8"
        )


def test_nobody_is_accused_where_all_are_at_one_step(tmp_path):
    run = Run(2, tmp_path, beat_s=0.1)
    zero, one = run.peers(0), run.peers(1)
    zero.step = one.step = 8
    with zero, one:
        time.sleep(0.5)
        assert zero.report_hang() == ""


def test_connections_without_the_token_of_the_run_are_closed(tmp_path):
    run = Run(2, tmp_path)
    with run.peers(0):
        address = run.address.get(timeout=20)
        host, port, token = address.rsplit(":", 2)
        guess = "0" * len(token)
        for hello in (b"1 host1\nstop all\n", f"{guess} 1 host1\nstop\n".encode()):
            with socket.create_connection((host, int(port)), timeout=20) as stranger:
                stranger.sendall(hello)
                try:
                    assert stranger.recv(1) == b""
                except ConnectionError:  # Closed before all was read.
                    pass
        # One that says nothing does not keep the others out.
        with socket.create_connection((host, int(port)), timeout=20):
            run.address.put(address)
            with run.peers(1):
                time.sleep(0.5)
                assert run.ended[0].empty() and run.ended[1].empty()
    assert run.ended[0].empty() and run.ended[1].empty()


def test_an_endless_first_line_is_not_collected(tmp_path):
    run = Run(2, tmp_path)
    with run.peers(0):
        host, port, _ = run.address.get(timeout=20).rsplit(":", 2)
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            with pytest.raises(OSError):
                for _ in range(10_000):
                    stranger.sendall(b"x" * 10_000)
