"""A new run in a folder that holds logs already loses none of them."""

from prottrans_jax.training import earlier_logs


def test_logs_of_others_are_kept_under_another_name(tmp_path, caplog):
    (tmp_path / "tensorboard").mkdir()
    for name in ("config.gin", "metrics.jsonl", "tensorboard/events.out.tfevents.1.x"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "metrics.jsonl.before-1").write_text("older")
    moved = earlier_logs.set_aside(tmp_path, "TRAIN_STEPS = 3\n")
    assert [path.relative_to(tmp_path).as_posix() for path in moved] == [
        "config.gin.before-1",
        "metrics.jsonl.before-2",
        "tensorboard/events.out.events.1.x.before-1",
    ]
    assert all(path.read_text() == "mine" for path in moved)
    assert (tmp_path / "metrics.jsonl.before-1").read_text() == "older"
    assert "metrics.jsonl was there before this run" in caplog.text


def test_own_configuration_and_empty_log_are_not_renamed(tmp_path):
    (tmp_path / "config.gin").write_text("TRAIN_STEPS = 3\n")
    (tmp_path / "metrics.jsonl").write_text("")
    assert earlier_logs.set_aside(tmp_path, "TRAIN_STEPS = 3\n") == []
    assert len(list(tmp_path.iterdir())) == 2
