"""Sums, clocks and log files of a run."""

import json
import math
import time

import pytest

from prottrans_jax import metrics


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
