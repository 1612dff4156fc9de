"""TensorBoard reads each step once, whatever wrote it before a restart."""

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import record_writer

from prottrans_jax.training import event_files


def scalars(directory):
    """(tag, step) to value, as TensorBoard reads them; a pair twice is an error."""
    reader = event_accumulator.EventAccumulator(
        str(directory),
        size_guidance={event_accumulator.TENSORS: 0, event_accumulator.SCALARS: 0},
        purge_orphaned_data=False,
    )
    reader.Reload()
    values = {}
    for tag in reader.Tags()["tensors"]:
        for event in reader.Tensors(tag):
            assert (tag, event.step) not in values
            values[tag, event.step] = event.tensor_proto.float_val[0]
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            assert (tag, event.step) not in values
            values[tag, event.step] = event.value
    return values


def write(directory, values):
    writer = event_files.EventWriter(directory)
    for step, value in values.items():
        writer.write_scalars(step, {"train/loss": value, "valid/loss": value + 0.5})
    writer.close()
    return writer.path


def test_tensorboard_reads_what_was_written(tmp_path):
    write(tmp_path, {3: 1.5, 6: 2.5})
    assert scalars(tmp_path) == {
        ("train/loss", 3): 1.5,
        ("valid/loss", 3): 2.0,
        ("train/loss", 6): 2.5,
        ("valid/loss", 6): 3.0,
    }


def test_steps_after_the_checkpoint_are_dropped_from_every_file(tmp_path):
    write(tmp_path / "tensorboard", {3: 1.0, 6: 2.0, 9: 3.0})
    event_files.cut_back(tmp_path, 6, evaluated=True)
    write(tmp_path / "tensorboard", {9: 4.0, 12: 5.0})
    event_files.cut_back(tmp_path, 3, evaluated=True)
    write(tmp_path / "tensorboard", {6: 7.0})
    assert scalars(tmp_path / "tensorboard") == {
        ("train/loss", 3): 1.0,
        ("valid/loss", 3): 1.5,
        ("train/loss", 6): 7.0,
        ("valid/loss", 6): 7.5,
    }


def test_evaluation_that_will_be_made_again_is_dropped(tmp_path):
    write(tmp_path / "tensorboard", {3: 1.0, 6: 2.0})
    event_files.cut_back(tmp_path, 6, evaluated=False)
    kept = scalars(tmp_path / "tensorboard")
    assert ("train/loss", 6) in kept and ("valid/loss", 6) not in kept


def test_files_of_another_writer_with_all_scalars_in_one_event_are_cut_too(tmp_path):
    path = tmp_path / "tensorboard" / "sub" / "events.out.tfevents.1.host.v2"
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        writer = record_writer.RecordWriter(file)
        writer.write(event_pb2.Event(file_version="brain.Event:2").SerializeToString())
        for step in (2, 4):
            summary = summary_pb2.Summary(
                value=[
                    summary_pb2.Summary.Value(tag=tag, simple_value=step)
                    for tag in ("train/loss", "valid/loss")
                ]
            )
            event = event_pb2.Event(step=step, summary=summary)
            writer.write(event.SerializeToString())
    event_files.cut_back(tmp_path, 4, evaluated=False)
    assert scalars(path.parent) == {
        ("train/loss", 2): 2.0,
        ("valid/loss", 2): 2.0,
        ("train/loss", 4): 4.0,
    }


def test_event_cut_by_a_kill_is_dropped_without_a_word(tmp_path, caplog):
    path = write(tmp_path / "tensorboard", {3: 1.0, 6: 2.0})
    path.write_bytes(path.read_bytes()[:-5])
    event_files.cut_back(tmp_path, 6, evaluated=True)
    assert ("valid/loss", 6) not in scalars(path.parent)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not caplog.records


@pytest.mark.parametrize("place", ["length", "event"])
def test_damaged_file_is_kept_aside_and_its_sound_events_stay(tmp_path, caplog, place):
    path = write(tmp_path / "tensorboard", {3: 1.0, 6: 2.0})
    damaged = bytearray(path.read_bytes())
    if place == "event":
        at = damaged.index(b"valid/loss")
        damaged[at - 2 : at] = b"\xff\xff"
    else:
        damaged += bytes(40)
    path.write_bytes(damaged)
    event_files.cut_back(tmp_path, 6, evaluated=True)
    assert ("train/loss", 6) in scalars(path.parent)
    (copy,) = [p for p in path.parent.iterdir() if p != path]
    assert copy.read_bytes() == damaged and "tfevents" not in copy.name
    assert copy.name in caplog.text


def test_other_runs_below_the_run_are_left_alone(tmp_path):
    other = write(tmp_path / "second" / "tensorboard", {9: 1.0})
    before = other.read_bytes()
    event_files.cut_back(tmp_path, 3, evaluated=True)
    assert other.read_bytes() == before
