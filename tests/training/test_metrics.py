"""Sums, clocks and log files of a run."""

import json
import math
import time

import pytest

from prottrans_jax.training import metrics


def test_means_weigh_by_weight_and_leave_out_what_was_never_counted():
    sums = metrics.SumAccumulator()
    sums.add({"loss": (6.0, 2.0), "masked_loss": (0.0, 0.0)})
    sums.add({"loss": (1.0, 5.0)})
    assert sums.means() == {"loss": 1.0}


def test_window_cut_by_a_restart_continues_to_the_bit():
    whole, cut = metrics.SumAccumulator(), metrics.SumAccumulator()
    terms = [{"loss": (0.1 * i, 1 / 3 + i)} for i in range(7)]
    for term in terms:
        whole.add(term)
    for term in terms[:3]:
        cut.add(term)
    cut = metrics.SumAccumulator(json.loads(json.dumps(cut.state())))
    for term in terms[3:]:
        cut.add(term)
    assert cut.state() == whole.state()


def test_perplexity_stands_beside_every_loss():
    means = metrics.with_perplexity({"loss": 2.0, "masked_loss": 0.0, "accuracy": 0.5})
    assert means["perplexity"] == pytest.approx(math.exp(2))
    assert means["masked_perplexity"] == 1.0
    assert "accuracy_perplexity" not in means


def test_causes_of_time_nest_and_add_up_to_the_wall_time():
    watch = metrics.Stopwatch()
    with watch.cause("evaluate"):
        time.sleep(0.02)
        with watch.cause("checkpoint"):
            time.sleep(0.03)
    split, wall = watch.split(), watch.wall()
    assert split["checkpoint"] >= 0.03
    # The inner cause's time is not counted for the outer one as well.
    assert sum(split.values()) == pytest.approx(wall, abs=5e-3)


def test_restart_drops_lines_after_the_checkpoint_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path, resume_at=0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 0.1 * step})
    writer.flush()
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    metrics.JsonlWriter(path, resume_at=2).write_scalars(3, {"loss": 7.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3]
    assert records[1]["loss"] == 0.1 * 2 and records[2]["loss"] == 7.0


def test_non_finite_scalars_are_still_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.JsonlWriter(path, 0).write_scalars(1, {"loss": float("nan")})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["loss"] == "nan"


def _write_log(path, steps):
    writer = metrics.JsonlWriter(path, 0)
    for step in steps:
        writer.write_scalars(step, {"train/loss": 0.1 * step})
    writer.close()
    return writer.logged.state()


def _steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_scalars_of_one_step_share_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write_log(path, [3, 6])
    writer = metrics.JsonlWriter(path, 6)
    writer.write_scalars(6, {"validation/loss": 2.5})
    writer.write_scalars(9, {"train/loss": 4.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert lines[1] == {"step": 6, "train/loss": 0.1 * 6, "validation/loss": 2.5}


def test_evaluation_that_will_be_made_again_is_dropped_from_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write_log(path, [3, 6])
    metrics.JsonlWriter(path, 6).write_scalars(6, {"validation/loss": 2.5})
    again = metrics.JsonlWriter(path, 6, evaluated=False)
    assert json.loads(path.read_text().splitlines()[-1]) == {
        "step": 6,
        "train/loss": 0.1 * 6,
    }
    again.write_scalars(6, {"validation/loss": 3.5})
    assert _steps(path) == [3, 6]


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"[1, 2]", b'{"loss": 1}', b"{"])
def test_bad_line_is_named_and_the_file_kept_aside(tmp_path, caplog, bad):
    path = tmp_path / "metrics.jsonl"
    logged = _write_log(path, [3, 6, 9])
    lines = path.read_bytes().splitlines(True)
    damaged = lines[0] + bad + b"\n" + lines[2]
    path.write_bytes(damaged)
    metrics.JsonlWriter(path, 9, logged=logged)
    assert _steps(path) == [3, 9]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == damaged
    assert "line 2; it was copied to metrics.jsonl.damaged-1" in caplog.text
    assert caplog.text.rstrip().endswith("Steps missing from the log: train 6.")


def test_log_cut_in_half_is_kept_aside_and_its_missing_steps_are_named(
    tmp_path, caplog
):
    path = tmp_path / "metrics.jsonl"
    logged = _write_log(path, range(3, 33, 3))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    writer = metrics.JsonlWriter(path, 30, logged=logged)
    assert _steps(path) == [3, 6, 9, 12]
    assert (tmp_path / "metrics.jsonl.damaged-1").exists()
    assert "train 15, 18, 21, 24, 27, 30" in caplog.text
    # The next checkpoint knows what the log holds: the same is not said again.
    caplog.clear()
    metrics.JsonlWriter(path, 30, logged=writer.logged.state())
    assert not caplog.records


def test_lost_log_is_named_with_its_steps(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    logged = _write_log(path, [3, 6])
    path.unlink()
    metrics.JsonlWriter(path, 6, logged=logged)
    assert "is missing" in caplog.text and "train 3, 6" in caplog.text


def test_log_of_a_killed_run_is_cut_without_a_word(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    logged = _write_log(path, [3, 6])
    _write_log(path, [3, 6, 9])
    with open(path, "ab") as file:
        file.write(b'{"step": 12, "lo')
    metrics.JsonlWriter(path, 6, logged=logged)
    assert _steps(path) == [3, 6]
    assert not caplog.records
