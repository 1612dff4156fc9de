import os
import signal

import pytest

from cases import process_cases
from prottrans_jax.distributed import stopping


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_asks_to_stop_and_sets_the_exit_code(number, code):
    before = signal.getsignal(number)
    with stopping.StopSignal() as stop:
        assert not stop.should_stop(0)
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.should_stop(1) and stop.requested
    assert stop.exit_code == code
    assert signal.getsignal(number) is before


INTERRUPTED = """
import os, signal, time
from prottrans_jax.distributed import stopping
with stopping.StopSignal():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_interrupt_ends_the_process_at_once():
    code, output = process_cases.finish(process_cases.start_python("-c", INTERRUPTED))
    assert code == 130 and "still here" in output and "Second interrupt" in output


TAKEN_OVER = """
import os, signal, sys, time
from prottrans_jax.distributed import stop_signals
stop_signals.install("train", "Not begun.", ends_process=True)
from prottrans_jax.distributed import stopping
os.kill(os.getpid(), signal.SIGTERM)
with stopping.StopSignal() as stop:
    time.sleep(3)  # The first handlers would have ended the process.
    print("stops:", stop.should_stop(1), stop.exit_code, flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_a_run_is_obeyed_by_it_and_one_after_it_ends_the_process(
    number,
):
    process = process_cases.start_python("-c", TAKEN_OVER, int(number))
    code, output = process_cases.finish(process)
    assert code == -number and "stops: True 143" in output
    assert "Not begun" not in output and "Traceback" not in output
