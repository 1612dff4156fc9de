"""Nothing is replaced or deleted that this program did not make."""

import errno
import json
import os

import h5py
import numpy as np
import pytest

from cases.embed_cases import embed, embed_into, random_proteins, read, write_fasta
from prottrans_jax.embed import formats, job, outputs, shards
from prottrans_jax.files import ownership

FORMATS = (".h5", ".npz", ".parquet", ".zarr", ".csv", ".tsv")


def content(folder):
    """Bytes of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refuse(encoder, source, output, folder, **options):
    """Checks that the output is refused and files are unchanged; returns the error."""
    before = content(folder)
    with pytest.raises(ownership.ForeignError) as error:
        embed(encoder, source, output, **options)
    assert content(folder) == before
    return str(error.value)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_of_the_users_at_the_output_stays(
    encoder, fasta_file, tmp_path, suffix, overwrite
):
    output = tmp_path / f"out{suffix}"
    (output / "thesis").mkdir(parents=True)
    (output / "thesis" / "chapter.tex").write_text("years of work")
    options = {"overwrite": overwrite, "per_protein": True}
    message = refuse(encoder, fasta_file, output, tmp_path, **options)
    assert message.startswith(f"{output} is a folder that was not made by this program")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_the_users_at_the_output_stays(encoder, fasta_file, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    output.write_bytes(b"id,name\n1,mine\n")
    options = {"overwrite": True, "per_protein": True}
    message = refuse(encoder, fasta_file, output, tmp_path, **options)
    assert "Move or delete it" in message


def test_an_hdf5_file_of_others_stays(encoder, fasta_file, tmp_path):
    output = tmp_path / "per-residue.h5"
    with h5py.File(output, "w") as file:
        file["P12345"] = np.ones((3, 1024), np.float16)
    refuse(encoder, fasta_file, output, tmp_path, overwrite=True)


@pytest.mark.parametrize("kind", ["per_residue", "per_protein"])
def test_both_outputs_are_checked(encoder, fasta_file, tmp_path, kind):
    (tmp_path / f"out.{kind}.h5").mkdir()
    both = {"per_residue": True, "per_protein": True, "overwrite": True}
    refuse(encoder, fasta_file, tmp_path / "out.h5", tmp_path, **both)


@pytest.mark.parametrize("name", ["out.h5.json", "out.h5.skipped.tsv"])
def test_files_of_the_users_beside_the_output_stay(encoder, fasta_file, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}\n')
    message = refuse(encoder, fasta_file, tmp_path / "out.h5", tmp_path)
    assert message.startswith(f"{tmp_path / name} is in the way")


@pytest.mark.parametrize(
    "names",
    [["notes.txt"], ["00000.safetensors"], ["2020.csv", "run.json"], ["lock", "x"]],
)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": False}])
def test_a_folder_of_parts_of_the_users_stays(
    encoder, fasta_file, tmp_path, names, options
):
    parts = tmp_path / "out.h5.parts"
    parts.mkdir()
    for name in names:
        (parts / name).write_text("{}")
    refuse(encoder, fasta_file, tmp_path / "out.h5", tmp_path, **options)


def test_files_that_a_user_adds_to_the_parts_are_kept(encoder, fasta_file, tmp_path):
    output = tmp_path / "out.h5"
    notes = tmp_path / "out.h5.parts" / "notes.txt"
    job.embed_fasta(
        encoder, fasta_file, output, on_plan=lambda plan: notes.write_text("mine")
    )
    assert content(notes.parent) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_outputs_of_our_own_are_replaced_when_asked(
    encoder, other_model_folder, tmp_path, suffix
):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(3))
    output = embed_into(encoder, source, tmp_path / f"o{suffix}", per_protein=True)
    write_fasta(source, random_proteins(5, seed=1))
    report = embed(encoder, source, output, per_protein=True, overwrite=True)
    assert report.embedded == 5 and formats.describe(output).proteins == 5
    assert not shards_of(output).exists()


def shards_of(output):
    return output.with_name(output.name + ".parts")


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".zarr"])
def test_outputs_are_recognised_without_output_json(encoder, tmp_path, suffix):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(3))
    output = embed_into(encoder, source, tmp_path / f"o{suffix}")
    outputs.companion(output).unlink()
    outputs.refuse_foreign(output, [output])


def test_a_zarr_output_with_files_of_the_users_in_it_stays(encoder, tmp_path):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(3))
    output = embed_into(encoder, source, tmp_path / "o.zarr")
    (output / "labels").mkdir()
    refuse(encoder, source, output, tmp_path, overwrite=True)


def test_reformatted_files_may_be_replaced(encoder, tmp_path):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(3))
    made = embed_into(encoder, source, tmp_path / "o.h5")
    for suffix in (".npz", ".zarr", ".csv"):
        converted = tmp_path / f"c{suffix}"
        formats.reformat(made, converted, pool="mean")
        report = embed(encoder, source, converted, per_protein=True, overwrite=True)
        assert report.embedded == 3


def test_an_empty_file_is_replaced(encoder, fasta_file, tmp_path):
    (tmp_path / "out.h5").touch()
    embed(encoder, fasta_file, tmp_path / "out.h5", overwrite=True)
    assert len(read(tmp_path / "out.h5")) == 40


@pytest.mark.parametrize("link", ["same", "hard", "soft"])
def test_an_output_that_is_the_input_is_refused(encoder, tmp_path, link):
    source = write_fasta(tmp_path / "a.csv", random_proteins(2))
    output = source if link == "same" else tmp_path / "b.csv"
    if link == "hard":
        os.link(source, output)
    elif link == "soft":
        output.symlink_to(source)
    refuse(encoder, source, output, tmp_path, per_protein=True, overwrite=True)


def test_an_empty_input_is_not_overwritten(encoder, tmp_path):
    # Empty: no format tells that it is the user's.
    (tmp_path / "a.csv").touch()
    options = {"per_protein": True, "overwrite": True}
    message = refuse(
        encoder, tmp_path / "a.csv", tmp_path / "a.csv", tmp_path, **options
    )
    assert "is an input too" in message


def test_reformat_replaces_no_file(encoder, tmp_path):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(2))
    made = embed_into(encoder, source, tmp_path / "o.h5")
    (tmp_path / "c.npz.json").write_text('{"mine": 1}')
    (tmp_path / "d.partial.npz").write_text("mine")
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    before = content(tmp_path)
    for output in (made, tmp_path / "link.npz"):
        with pytest.raises(FileExistsError):
            formats.reformat(made, output)
    with pytest.raises(ownership.ForeignError, match=r"c\.npz\.json is in the way"):
        formats.reformat(made, tmp_path / "c.npz")
    assert content(tmp_path) == before
    formats.reformat(made, tmp_path / "d.npz")
    assert (tmp_path / "d.partial.npz").read_text() == "mine"


def test_a_zarr_output_displaced_by_a_kill_is_put_back(encoder, tmp_path):
    source = write_fasta(tmp_path / "a.fasta", random_proteins(3))
    output = embed_into(encoder, source, tmp_path / "o.zarr")
    parts = shards.Parts(output, {})  # As a kill leaves it between two renames.
    os.replace(output, parts.folder / "before.residues")
    parts.close()
    more = {**random_proteins(3), "Q": "MKTAYW"}
    embed(encoder, write_fasta(source, {"Q": more["Q"]}), output)
    assert {*formats.keys(output)} == {*more}
    assert not shards_of(output).exists()


def test_a_full_disk_while_merging_leaves_room(
    encoder, fasta_file, tmp_path, monkeypatch
):
    replace, merged = os.replace, []

    def full(source, target):
        if "merged." in str(source):
            merged.append(source)
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    output = tmp_path / "out.h5"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(job.DiskFullError, match="run the same command again"):
            embed(encoder, fasta_file, output)
    assert merged and not list(shards_of(output).glob("merged.*"))
    report = embed(encoder, fasta_file, output)
    assert (report.resumed, report.embedded) == (40, 0)


def test_partial_merge_is_removed_at_the_next_start(tmp_path):
    output = tmp_path / "out.h5"
    parts = shards.Parts(output, {})
    (parts.folder / "merged.residues.h5").write_bytes(b"half")
    parts.close()
    parts = shards.Parts(output, {})
    assert not list(parts.folder.glob("merged.*"))
    parts.close()


@pytest.mark.parametrize(
    "left", [["lock"], ["lock", "journal.jsonl"], ["lock", "run.json.partial"], []]
)
def test_parts_left_by_a_kill_of_any_version_are_accepted(
    encoder, fasta_file, tmp_path, left
):
    output = tmp_path / "out.h5"
    shards_of(output).mkdir()
    for name in left:
        (shards_of(output) / name).write_text("")
    assert embed(encoder, fasta_file, output).embedded == 40
    assert not shards_of(output).exists()


def test_a_damaged_line_of_the_journal_is_computed_again(encoder, tmp_path):
    output = tmp_path / "out.h5"
    identity = json.dumps({"run": 1})
    parts = shards.Parts(output, json.loads(identity))
    item = shards.Item(b"k" * 32, {"residues": np.ones((2, 3), np.float16)})
    parts.commit([item])
    parts.commit([item])
    parts.close()
    journal = shards_of(output) / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"{" + first + second)
    parts = shards.Parts(output, json.loads(identity))
    assert list(shards_of(output).glob("*.safetensors")) == [
        shards_of(output) / "00001.safetensors"
    ]
    parts.close()
