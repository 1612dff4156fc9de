"""Preparing replaces and clears away only what it made itself."""

import errno
import fcntl
import json

import pytest

from prottrans_jax.data.records import store
from prottrans_jax.files import locks, ownership, paths

PROTEINS = [("P1", "MKV"), ("P2", "ACDX")]


def make(folder, **options):
    with store.Writer(folder, name="toy", **options) as writer:
        writer.add_shard("train", PROTEINS)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refuse(folder, match, **options):
    before = content(folder.parent)
    with pytest.raises(ownership.ForeignError, match=match):
        make(folder, **options)
    assert content(folder.parent) == before


@pytest.mark.parametrize("manifest", ["{}", '{"name": "A web application"}', "nothing"])
def test_a_folder_with_another_manifest_stays(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(manifest)
    refuse(tmp_path / "out", "not touching it", overwrite=True)


def test_files_added_to_a_finished_folder_stay(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refuse(tmp_path / "out", r"out holds .* \(notes\.txt\)", overwrite=True)


@pytest.mark.parametrize("damage", [b"{", b"name", b"1.0.0"])
def test_a_finished_folder_with_a_damaged_manifest_can_be_prepared_again(
    tmp_path, damage
):
    make(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(damage, b"", 1))
    make(tmp_path / "out", overwrite=True)
    assert not store.verify(tmp_path / "out")


@pytest.mark.parametrize("name", ["out.partial", "out.replaced"])
@pytest.mark.parametrize("file", ["notes.txt", "train.array_record"])
def test_folders_of_the_users_beside_the_output_stay(tmp_path, name, file):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text("mine")
    refuse(tmp_path / "out", name)


def test_a_file_called_like_the_lock_stays(tmp_path):
    (tmp_path / "out.lock").write_text("mine")
    with pytest.raises(locks.NotALockError, match=r"out\.lock is in the way"):
        make(tmp_path / "out")
    assert content(tmp_path) == {"out.lock": b"mine"}


@pytest.mark.parametrize("holder", ["pid 7 on host", json.dumps({"pid": 7})])
def test_files_left_by_a_killed_run_of_any_version_are_removed(tmp_path, holder):
    if holder.startswith("{"):
        holder = json.dumps({"pid": 7, "host": "h", "since": "2026-01-01 00:00:00"})
    (tmp_path / "out.lock").write_text(holder)
    work = tmp_path / "out.partial"
    (work / "spill").mkdir(parents=True)
    (work / "train.0.array_record").write_text("half")
    (work / "train.0.lengths").write_text("half")
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_finished_folder_is_replaced_and_the_folder_stays(tmp_path):
    make(tmp_path / "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    before = content(tmp_path / "real")
    make(tmp_path / "out", overwrite=True)
    assert content(tmp_path / "real") == before and not (tmp_path / "out").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "out"}


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS"])
def test_without_file_locks_a_folder_is_written_with_a_warning(
    tmp_path, monkeypatch, caplog, name
):
    def flock(descriptor, operation):
        raise OSError(getattr(errno, name), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    make(tmp_path / "out")
    assert "does not lock files" in caplog.text and "another process" not in caplog.text
    assert store.open(tmp_path / "out").split("train").num_records == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tilde_is_home_and_other_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make("~/records")
    assert store.open("~/records").path == tmp_path / "home" / "records"
    for write in (make, store.open, store.verify):
        with pytest.raises(paths.PathError, match="gs:// and s3://"):
            write("hdfs://bucket/records")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
