"""Files that appear whole or not at all, and what is never replaced."""

import errno
import os

import pytest

from prottrans_jax.files import ownership, paths, writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_one_before(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with writing.new_file(path) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["x.json"]


def test_a_file_that_failed_leaves_the_one_before(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing.new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["x.json"]


def test_temporary_names_take_no_file_of_the_users(tmp_path):
    kept = {"x.json.partial", "x.partial.json", "x.json.tmp", "x.tmp"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    writing.write_synced(tmp_path / "x.json", b"{}")
    assert {*names(tmp_path)} == kept | {"x.json"}
    assert all((tmp_path / name).read_text() == "mine" for name in kept)


def test_the_longest_name_has_a_temporary_one(tmp_path):
    path = tmp_path / ("ä" * 120 + ".json")
    writing.write_synced(path, b"{}")
    assert names(tmp_path) == [path.name]


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "out").mkdir()  # Empty: may be taken.
    with writing.new_folder(tmp_path / "out") as folder:
        assert folder.name == "out" and folder.parent != tmp_path
        (folder / "a").write_text("1")
        assert not names(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_a_folder_that_failed_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), writing.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["out"] and not names(tmp_path / "out")


def test_a_folder_filled_by_others_meanwhile_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileExistsError), writing.new_folder(out) as folder:
        (folder / "a").write_text("1")
        out.mkdir()
        (out / "theirs").write_text("2")
    assert names(tmp_path) == ["out"] and names(out) == ["theirs"]


@pytest.mark.parametrize("kind", ["file", "link", "full"])
def test_new_folder_does_not_replace_what_exists(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        (out / "mine").write_text("1")
    with pytest.raises(FileExistsError, match="exists"), writing.new_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    writing.remove(tmp_path / "link")
    assert names(tmp_path) == ["real"] and names(tmp_path / "real") == ["a"]


def test_foreign_entries_are_named(tmp_path):
    ownership.refuse_foreign_entries(tmp_path / "absent", str.isdigit)
    for name in ("1", "2", "a", "b", "c", "d"):
        (tmp_path / name).write_text("")
    with pytest.raises(ownership.ForeignError, match=r"\(a, b, c and 1 more\)"):
        ownership.refuse_foreign_entries(tmp_path, str.isdigit)
    with pytest.raises(ownership.ForeignError, match="this is a file"):
        ownership.refuse_foreign_entries(tmp_path / "1", str.isdigit)


@pytest.mark.parametrize("how", ["same", "relative", "hard", "soft"])
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.fasta"
    source.write_text(">a\nMK\n")
    output = tmp_path / "b"
    if how == "hard":
        os.link(source, output)
    elif how == "soft":
        output.symlink_to(source)
    else:
        output = source if how == "same" else "a.fasta"
    with pytest.raises(ownership.ForeignError, match="is an input too"):
        ownership.refuse_same([tmp_path / "other", source], [output])
    ownership.refuse_same([source], [tmp_path / "new"])


class _ErrorOfALibrary(Exception):
    """As TensorFlow's ResourceExhaustedError: of no class of Python's."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # From write(): no name.
        OSError(errno.EDQUOT, "Disk quota exceeded", "/hidden/.out.0.partial/x"),
        ValueError(
            "RESOURCE_EXHAUSTED: Failed to write 8 bytes: No space left on "
            "device [os_error_code='28']"
        ),
        _ErrorOfALibrary("out/part-0.tempstate1; No space left on device [Op:SaveV2]"),
    ],
)
def test_a_full_disk_names_the_folder_that_was_asked_for(error, tmp_path):
    with pytest.raises(OSError) as raised, writing.new_folder(tmp_path / "out"):
        raise error
    assert raised.value.errno in (errno.ENOSPC, errno.EDQUOT)
    said = paths.explain(raised.value)
    assert said.startswith(f"{tmp_path / 'out'}: {os.strerror(raised.value.errno)}.")
    assert names(tmp_path) == []


def test_errors_that_tell_of_no_full_disk_are_left_as_they_are(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/theirs")
    with pytest.raises(PermissionError) as raised, writing.new_folder(tmp_path / "out"):
        raise error
    assert raised.value is error and raised.value.filename == "/theirs"
