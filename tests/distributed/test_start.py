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
    assert "process 0 is up, another process is missing" in said_2
    assert "process 0 cannot be reached at localhost" in said_1


def test_no_limit_of_a_run_is_beyond_that_at_which_jax_aborts(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", given.update)
    start.initialize("auto")
    limits = run_settings.Limits()
    longest = max(limits.startup_s, limits.step_s)
    assert given["heartbeat_timeout_seconds"] > longest


def test_incomplete_or_impossible_cluster_arguments_are_refused():
    with pytest.raises(ValueError, match="without a coordinator"):
        start.initialize(None, 2, 0)
    with pytest.raises(ValueError, match="needs process_count"):
        start.initialize("localhost:1")
    with pytest.raises(ValueError, match="not below process_count=2"):
        start.initialize("localhost:1", 2, 2)
    with pytest.raises(ValueError, match="not HOST:PORT"):
        start.initialize("localhost", 2, 0)
    start.initialize()
