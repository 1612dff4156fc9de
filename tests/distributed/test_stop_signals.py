"""Stop signals: at any moment, in any command, one line and 128 plus the number."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cases import embed_cases
from prottrans_jax.distributed import stop_signals


def test_a_signal_raises_at_the_next_check_and_not_before():
    before = signal.getsignal(signal.SIGTERM)

    def run():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the signal")
        stop_signals.check()
        reached.append("after the check")
        return 0

    reached = []
    assert stop_signals.guarded("name", "", run) == 143
    assert reached == ["after the signal"]
    assert signal.getsignal(signal.SIGTERM) is before
    stop_signals.check()  # Of no consequence any more.


def test_a_signal_after_the_last_check_still_decides_the_status(capsys):
    def run():
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert stop_signals.guarded("name", "Advice.", run) == 130


def test_a_second_signal_raises_in_a_process_that_is_not_ended():
    def run():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # As `timeout` sends it: the same.
        time.sleep(0.6)
        reached.append("before the second")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the second")
        return 0

    reached = []
    assert stop_signals.guarded("name", "", run) == 143
    assert reached == ["before the second"]


BUSY = """
import gc, os, signal, sys, time
from prottrans_jax.distributed import stop_signals

stop_signals.install("name", "Advice.", ends_process=True)
def by_collector(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), int(sys.argv[1]))
gc.callbacks.append(by_collector)
with stop_signals.before_exit(lambda: print("cleaned up", flush=True)):
    gc.collect()
    time.sleep(600)  # Never checks.
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_process_that_never_checks_is_ended_with_one_line(number, status):
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(int(number))], capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stdout == "cleaned up\n"
    assert done.stderr == f"name: stopped by {number.name}. Advice.\n"


def test_a_signal_while_tensorflow_is_imported_says_its_line():
    code = """
import os, signal, time
from prottrans_jax.config import mains
from prottrans_jax.distributed import stop_signals

stop_signals.install("name", "Advice.", ends_process=True)
with mains._without_chatter():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stderr == "name: stopped by SIGTERM. Advice.\n"


def test_a_second_signal_ends_a_process_at_once():
    code = """
import os, signal, time
from prottrans_jax.distributed import stop_signals

stop_signals.install("name", "", ends_process=True)
with stop_signals.before_exit(lambda: time.sleep(600)):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == ""


def test_console_script_takes_signals_before_it_imports_jax_or_numpy():
    code = """
import sys
from prottrans_jax import cli
from prottrans_jax.distributed import stop_signals

def install(*given, **named):
    raise SystemExit(sorted({"jax", "numpy", "h5py"} & set(sys.modules)) or 0)

stop_signals.install = install
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = {"d_model": 32, "d_ff": 64, "num_heads": 1, "head_dim": 32}
    folder = tmp_path_factory.mktemp("stop") / "tiny"
    return embed_cases.make_model(folder, seed=0, **sizes)


@pytest.fixture(scope="module")
def source(request, tmp_path_factory):
    """Enough proteins to be at work for seconds."""
    proteins = embed_cases.random_proteins(request.param, seed=1)
    return embed_cases.write_fasta(
        tmp_path_factory.mktemp("stop") / "x.fasta", proteins
    )


def start(model, source, folder):
    """A job that compiles everything anew, and the file of what it says."""
    said = folder / "said"
    with open(said, "w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "prottrans_jax.cli", "embed", "-i", source),
                *("-o", folder / "out.h5", "-m", model, "--commit-seconds", "0"),
            ],
            stderr=file,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
        )
    return process, said


def is_importing(process, said, folder):
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    return "numpy" in maps.read_text()


def is_compiling(process, said, folder):
    return "to compute" in said.read_text()


def is_computing(process, said, folder):
    journal = folder / "out.h5.parts" / "journal.jsonl"
    return journal.is_file() and journal.stat().st_size > 0


@pytest.mark.parametrize("source", [4000], indirect=True)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (is_importing, signal.SIGTERM),
        (is_compiling, signal.SIGINT),
        (is_computing, signal.SIGTERM),
    ],
)
def test_embed_stops_while_it(model, source, tmp_path, moment, number):
    process, said = start(model, source, tmp_path)
    while process.poll() is None and not moment(process, said, tmp_path):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, said.read_text()
    lines = said.read_text().splitlines()
    assert lines[-1].startswith(f"prottrans: stopped by {number.name}."), lines
    assert "Traceback" not in said.read_text()
    assert not (tmp_path / "out.h5").exists()
