"""Lines about a job's progress."""

import time

from prottrans_jax.commands import progress
from prottrans_jax.embed import reports


def pace_after(compile_seconds):
    pace = reports.Pace(proteins=10, residues=1000, cost=2000.0)
    pace.compile_seconds = compile_seconds
    pace.add(residues=100, cost=400.0)
    return pace


def test_time_of_compilation_is_not_extrapolated():
    left = pace_after(compile_seconds=20.0).progress(seconds=25.0).seconds_left
    # A fifth of the cost took 5 s.
    assert left == 20.0


def test_time_left_is_not_said_as_long_as_nearly_all_was_compilation():
    now = pace_after(compile_seconds=20.0).progress(seconds=21.0)
    assert now.seconds_left is None
    assert "left" not in progress.text(now, computing_s=0.0)


def test_line_shows_the_current_computation_and_its_duration():
    pace = reports.Pace(proteins=1, residues=34_350, cost=1.0)
    pace.computing = "TITIN (34,350 residues)"
    line = progress.text(pace.progress(seconds=60.0), computing_s=60.0)
    assert line == (
        "0 of 1 protein, 0.0 % of residues, "
        "computing TITIN (34,350 residues) for 60.0 s"
    )


def test_lines_go_on_while_nothing_new_is_reported(capsys):
    pace = reports.Pace(proteins=1, residues=9, cost=1.0)
    pace.computing = "P1 (9 residues)"
    said = ""
    intervals_s = 0.01, 0.01
    with progress.Lines(silent=False, live=False, intervals_s=intervals_s) as lines:
        lines.show(pace.progress(seconds=0.0))
        while said.count("computing P1") < 3:
            time.sleep(0.01)
            said += capsys.readouterr().err


def test_silent_lines_print_nothing(capsys):
    with progress.Lines(silent=True, live=True) as lines:
        lines.show(pace_after(1.0).progress(seconds=9.0))
    assert capsys.readouterr().err == ""
