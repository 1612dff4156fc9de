import socket

import jax
import pytest

from cases import process_cases
from prottrans_jax.distributed import roll_call, start
from prottrans_jax.training import run_settings

START = """
import sys
from prottrans_jax.distributed import start
start.initialize(sys.argv[1], 3, int(sys.argv[2]), timeout_s=float(sys.argv[3]))
"""


def test_a_start_with_a_process_missing_ends_in_time_and_says_which():
    port, other = process_cases.free_port(), process_cases.free_port()
    started = [
        process_cases.start_python("-c", START, f"localhost:{port}", 0, 14),
        process_cases.start_python("-c", START, f"localhost:{port}", 2, 12),
        process_cases.start_python("-c", START, f"localhost:{other}", 1, 2),
    ]
    (code_0, said_0), (code_2, said_2), (code_1, said_1) = map(
        process_cases.finish, started
    )
    assert code_0 == code_1 == code_2 == roll_call.EXIT_STALLED
    assert "after 14 s process 1 missing; here: 0 (" in said_0
    assert "process 0 is up, another process is missing or" in said_2
    assert "process 0 cannot be reached at localhost" in said_1


def test_no_limit_of_a_run_is_beyond_that_at_which_jax_aborts(monkeypatch):
    given = {}
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **more: given.update(more)
    )
    # The devices of this process are found already.
    start.initialize(f"localhost:{process_cases.free_port()}", 1, 0)
    limits = run_settings.Limits()
    longest = max(limits.startup_s, limits.step_s)
    assert given["heartbeat_timeout_seconds"] > longest


def test_incomplete_or_impossible_cluster_arguments_are_refused():
    with pytest.raises(ValueError, match="without a coordinator"):
        start.initialize(None, 2, 0)
    with pytest.raises(ValueError, match="needs num_processes"):
        start.initialize("localhost:1", environ={})
    with pytest.raises(ValueError, match="not below num_processes=2"):
        start.initialize("localhost:1", 2, 2)
    with pytest.raises(ValueError, match="not HOST:PORT"):
        start.initialize("localhost", 2, 0)
    with pytest.raises(
        ValueError, match=r"nothing says how many .* \(JAX_NUM_PROCESSES"
    ):
        start.initialize(environ={"JAX_COORDINATOR_ADDRESS": "a:1"})
    with pytest.raises(ValueError, match="auto is for a TPU slice"):
        start.initialize("auto", environ={})
    start.initialize(environ={})


def test_a_launcher_that_does_not_tell_an_address_is_named():
    unknown = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    with pytest.raises(
        ValueError, match=r"^Open MPI \(.*\) does not tell .* --coordinator_address"
    ):
        start.initialize(environ=unknown)


def test_a_tpu_host_that_cannot_find_the_others_says_so(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    alone = {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}
    with pytest.raises(ValueError, match=r"has 4 hosts, but .* --coordinator_address"):
        start.initialize(environ=alone)


def test_one_process_on_request_ignores_the_launcher():
    two = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    start.initialize(num_processes=1, environ=two)


def test_the_launcher_completes_an_address_that_is_given(monkeypatch):
    given = {}
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **more: given.update(more)
    )
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    address = f"localhost:{process_cases.free_port()}"
    start.initialize(address, environ=one)
    assert (
        given["coordinator_address"],
        given["num_processes"],
        given["process_id"],
    ) == (address, 1, 0)


def test_a_port_in_use_is_named_in_one_line():
    port = process_cases.free_port()
    with socket.create_server(("", port)):
        process = process_cases.start_python("-c", START, f"localhost:{port}", 0, 2)
        code, output = process_cases.finish(process)
    assert code == 1
    assert output.splitlines()[-1].startswith(
        f"ValueError: Port {port} of this host, where process 0 listens at "
        f"localhost:{port}, cannot be used: Address already in use. "
    )
