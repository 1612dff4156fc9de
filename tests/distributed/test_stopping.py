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
