"""Jobs: no protein is lost or duplicated after kills, errors and changes."""

import dataclasses
import errno
import fcntl
import gzip
import io
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from cases.embed_cases import embed, random_proteins, read, stop_after, write_fasta
from prottrans_jax.embed import forward, inputs, job, settings
from prottrans_jax.files import locks
from prottrans_jax.kernels import x86
from prottrans_jax.proteins import fasta_problems


def parts_of(path):
    return path.with_name(path.name + ".parts")


def test_every_protein_is_there_with_its_vectors(
    encoder, fasta_file, proteins, tmp_path
):
    output = tmp_path / "out.h5"
    report = embed(encoder, fasta_file, output)
    vectors_by_key = read(output)
    assert list(vectors_by_key) == sorted(proteins)
    assert (report.embedded, report.skipped) == (40, [])
    assert report.residues == sum(map(len, proteins.values()))
    expected = encoder.embed(list(proteins.values()))
    for key, vectors in zip(proteins, expected, strict=True):
        assert vectors_by_key[key].dtype == np.float16
        assert vectors_by_key[key].shape == (len(proteins[key]), 12)
        np.testing.assert_allclose(vectors_by_key[key], vectors, rtol=1e-3, atol=1e-3)
    assert not parts_of(output).exists()


def test_both_kinds_in_one_pass(encoder, fasta_file, proteins, tmp_path):
    report = embed(
        encoder,
        fasta_file,
        tmp_path / "out.h5",
        per_residue=True,
        per_protein=True,
        output_dtype="float32",
    )
    names = ["out.per_residue.h5", "out.per_protein.h5"]
    assert [path.name for path in report.outputs] == names
    residues, pooled = (read(path) for path in report.outputs)
    assert pooled.keys() == residues.keys() == proteins.keys()
    for key, vectors in residues.items():
        assert pooled[key].dtype == np.float32
        np.testing.assert_allclose(pooled[key], vectors.mean(axis=0), atol=1e-5)


def test_padding_is_reported_without_special_tokens(encoder, wide_encoder, tmp_path):
    # 8 tokens each: a padded length.
    even = write_fasta(tmp_path / "even.fasta", {"A": "MKTAYAK", "B": "ACDEFGH"})
    assert embed(encoder, even, tmp_path / "even.h5").padding == 0
    odd = write_fasta(tmp_path / "odd.fasta", {"A": "MKTAYAK", "B": "ACD"})
    assert embed(encoder, odd, tmp_path / "odd.h5").padding == 4 / 16
    packed = embed(wide_encoder, odd, tmp_path / "packed.h5").padding
    assert packed == (0 if x86.is_usable() else 4 / 16)


def test_same_sequence_under_two_ids_is_computed_once(encoder, tmp_path, monkeypatch):
    source = write_fasta(
        tmp_path / "x.fasta", {"A": "MKTAY", "B": "ACDEFG", "C": "MKTAY", "D": "mktay"}
    )
    rows = []
    run = forward.run

    def count(module, params, tokens, segments, spec):
        rows.append(int(segments.max(axis=1).sum()))
        return run(module, params, tokens, segments, spec)

    monkeypatch.setattr(forward, "run", count)
    report = embed(encoder, source, tmp_path / "out.h5")
    assert sum(rows) == 2 and report.embedded == 4
    vectors_by_key = read(tmp_path / "out.h5")
    assert sorted(vectors_by_key) == ["A", "B", "C", "D"]
    np.testing.assert_array_equal(vectors_by_key["A"], vectors_by_key["D"])


@pytest.mark.parametrize("name", ["encoder", "wide_encoder"])
def test_stopped_run_goes_on_and_writes_the_same_bytes(
    name, fasta_file, tmp_path, request
):
    encoder = request.getfixturevalue(name)
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    embed(encoder, fasta_file, whole)
    for number in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            job.embed_fasta(encoder, fasta_file, broken, on_progress=stop_after(number))
        assert not broken.exists() and parts_of(broken).is_dir()
    report = embed(encoder, fasta_file, broken)
    assert (report.resumed, report.embedded) == (14, 26)
    assert broken.read_bytes() == whole.read_bytes()


def test_damaged_shard_is_computed_again(encoder, fasta_file, tmp_path):
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    embed(encoder, fasta_file, whole)
    for _ in range(4):  # Each stop commits a shard.
        with pytest.raises(KeyboardInterrupt):
            job.embed_fasta(encoder, fasta_file, broken, on_progress=stop_after(3))
    committed = sorted(parts_of(broken).glob("*.safetensors"))
    data = bytearray(committed[3].read_bytes())
    data[-5] ^= 4
    committed[3].write_bytes(data)
    # What a kill leaves: half a line of the journal, half a shard.
    with open(parts_of(broken) / "journal.jsonl", "a") as file:
        file.write('{"shard": 99, "byt')
    (parts_of(broken) / "00099.partial").write_bytes(b"half")
    report = embed(encoder, fasta_file, broken)
    assert (len(committed), report.resumed) == (4, 9)
    assert broken.read_bytes() == whole.read_bytes()


def test_settings_may_change_while_nothing_is_computed(encoder, tmp_path):
    source = write_fasta(tmp_path / "x.fasta", {"A": "M" * 9, "B": "MK"})
    output = tmp_path / "out.h5"
    with pytest.raises(ValueError, match="--long skip"):
        embed(encoder, source, output, max_length=5)
    assert not parts_of(output).exists()
    report = embed(encoder, source, output, max_length=5, long="skip")
    assert (report.embedded, len(report.skipped)) == (1, 1)


def test_overwriting_goes_on_after_a_stop(encoder, fasta_file, tmp_path):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output, layers=1)
    for _ in range(2):  # Of the other layer nothing is taken, of the stopped run all.
        with pytest.raises(KeyboardInterrupt):
            job.embed_fasta(
                encoder,
                fasta_file,
                output,
                settings.Options(overwrite=True),
                on_progress=stop_after(10),
            )
    report = embed(encoder, fasta_file, output, overwrite=True)
    assert (report.embedded, report.resumed) == (20, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch=0"),
        ({"batch_tokens": -1}, "batch_tokens=-1"),
        ({"max_length": -5, "long": "truncate"}, "max_length=-5"),
        ({"max_length": 5, "long": "chunk", "chunk_overlap": 5}, "chunk_overlap=5"),
        ({"layers": "last0"}, "last0"),
    ],
)
def test_impossible_settings_fail_before_the_computation(
    encoder, fasta_file, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        embed(encoder, fasta_file, tmp_path / "out.h5", **options)
    with pytest.raises(ValueError, match="CSV holds one vector"):
        embed(encoder, fasta_file, tmp_path / "x.csv", per_protein=True, layers="all")
    assert [path.name for path in tmp_path.iterdir()] == [fasta_file.name]


def test_a_file_system_without_locks_is_a_warning(
    encoder, fasta_file, tmp_path, monkeypatch, caplog
):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    embed(encoder, fasta_file, tmp_path / "out.h5")
    assert "does not lock files" in caplog.text
    assert not parts_of(tmp_path / "out.h5").exists()


def test_changed_sequence_is_computed_again_after_a_stop(
    encoder, fasta_file, proteins, tmp_path
):
    output = tmp_path / "out.h5"
    done = []
    with pytest.raises(KeyboardInterrupt):
        job.embed_fasta(encoder, fasta_file, output, on_progress=stop_after(30))
    longest = max(proteins, key=lambda key: len(proteins[key]))  # Is computed first.
    changed = dict(proteins) | {longest: "MKTAYW"}
    write_fasta(fasta_file, changed)
    report = embed(encoder, fasta_file, output)
    assert report.embedded == 11 and not done
    assert read(output)[longest].shape == (6, 12)


def test_second_writer_is_told_who_holds_the_output(encoder, fasta_file, tmp_path):
    output = tmp_path / "out.h5"
    code = (
        "import sys, time, pathlib; from prottrans_jax.embed import shards; "
        f"parts = shards.Parts(pathlib.Path({str(output)!r}), {{}}); "
        "print(__import__('os').getpid(), flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        pid = holder.stdout.readline().decode().strip()
        with pytest.raises(locks.LockedError, match=f"process {pid} on "):
            embed(encoder, fasta_file, output)
    finally:
        holder.kill()
        holder.wait()
    # A killed holder holds nothing; what it began was something else.
    embed(encoder, fasta_file, output, overwrite=True)


def test_full_disk_keeps_what_was_committed(encoder, fasta_file, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.h5", tmp_path / "out.h5"
    embed(encoder, fasta_file, whole)
    with pytest.raises(KeyboardInterrupt):
        job.embed_fasta(encoder, fasta_file, output, on_progress=stop_after(10))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(job.DiskFullError, match="run the same command again"):
            embed(encoder, fasta_file, output)
    assert not output.exists()
    assert not list(parts_of(output).glob("*.partial"))
    report = embed(encoder, fasta_file, output)
    assert (report.resumed, report.embedded) == (10, 30)
    assert output.read_bytes() == whole.read_bytes()


def test_standard_input_that_is_no_fasta_is_not_copied(tmp_path):
    class Endless(io.RawIOBase):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            assert self.reads == 1
            return b"\x93junk\n" * 9000

    with pytest.raises(
        fasta_problems.FastaError, match=r"standard input:1: .*Is this FASTA"
    ):
        inputs.spool(Endless(), tmp_path)
    assert not list(tmp_path.iterdir())
    for text in (b"", b"; note\n>A\nMK\n", gzip.compress(b">A\nMK\n")):
        assert inputs.spool(io.BytesIO(text), tmp_path).read_bytes() == text


def test_long_proteins_by_policy(encoder, tmp_path):
    proteins = random_proteins(4, seed=3) | {"LONG": "MKTAYIAKQR" * 13}
    source = write_fasta(tmp_path / "x.fasta", proteins)
    whole = encoder.embed([proteins["LONG"]])[0]

    with pytest.raises(ValueError, match=r"x.fasta:9: 'LONG' has 130 residues"):
        embed(encoder, source, tmp_path / "error.h5", max_length=100)
    report = embed(encoder, source, tmp_path / "a.h5", max_length=100, long="skip")
    assert [(s.name, s.line) for s in report.skipped] == [("LONG", 9)]
    assert "LONG" not in read(tmp_path / "a.h5")
    assert "LONG\t9\t" in (tmp_path / "a.h5.skipped.tsv").read_text()

    options = {"max_length": 100, "output_dtype": "float32"}
    embed(encoder, source, tmp_path / "b.h5", long="truncate", **options)
    first = encoder.embed([proteins["LONG"][:100]])[0]
    np.testing.assert_allclose(read(tmp_path / "b.h5")["LONG"], first, atol=1e-5)

    embed(encoder, source, tmp_path / "c.h5", long="chunk", chunk_overlap=40, **options)
    pieces = read(tmp_path / "c.h5")["LONG"]
    assert pieces.shape == whole.shape
    # Residues 0-64 come from the piece 0-99, the rest from 30-129.
    last = encoder.embed([proteins["LONG"][30:]])[0]
    np.testing.assert_allclose(pieces[:65], first[:65], atol=1e-5)
    np.testing.assert_allclose(pieces[65:], last[35:], atol=1e-5)

    embed(encoder, source, tmp_path / "d.h5", output_dtype="float32")
    np.testing.assert_allclose(read(tmp_path / "d.h5")["LONG"], whole, atol=1e-5)


def test_chunks_are_pooled_over_the_whole_protein(encoder, tmp_path):
    source = write_fasta(tmp_path / "x.fasta", {"LONG": "MKTAYIAKQR" * 13})
    options = {"max_length": 100, "long": "chunk"}
    both = {"per_residue": True, "per_protein": True, "output_dtype": "float32"}
    embed(encoder, source, tmp_path / "a.h5", **options, **both)
    residues = read(tmp_path / "a.per_residue.h5")["LONG"]
    pooled = read(tmp_path / "a.per_protein.h5")["LONG"]
    np.testing.assert_allclose(pooled, residues.mean(axis=0), atol=1e-6)


def test_values_beyond_float16_are_an_error_not_infinity(encoder, fasta_file, tmp_path):
    import jax

    large = dataclasses.replace(
        encoder, params=jax.tree.map(lambda x: x * 1e5, encoder.params)
    )
    with pytest.raises(ValueError, match="does not fit float16"):
        embed(large, fasta_file, tmp_path / "out.h5")


def test_broken_weights_are_an_error_not_nan(encoder, fasta_file, tmp_path):
    import jax

    broken = dataclasses.replace(
        encoder, params=jax.tree.map(lambda x: x * np.nan, encoder.params)
    )
    with pytest.raises(ValueError, match="not finite"):
        embed(broken, fasta_file, tmp_path / "out.h5")


def test_sequence_too_large_for_memory_is_named_and_the_rest_done(
    encoder, fasta_file, proteins, tmp_path, monkeypatch
):
    longest = "LONG"
    proteins = dict(proteins) | {longest: "MKTAY" * 20}
    write_fasta(fasta_file, proteins)
    limit = len(proteins[longest])
    run = forward.run

    def small_device(module, params, tokens, segments, spec):
        if (segments != 0).sum(axis=1).max() > limit:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory.")
        return run(module, params, tokens, segments, spec)

    monkeypatch.setattr(forward, "run", small_device)
    report = embed(encoder, fasta_file, tmp_path / "out.h5")
    assert [s.name for s in report.skipped] == [longest]
    assert read(tmp_path / "out.h5").keys() == proteins.keys() - {longest}


def test_provenance_is_beside_the_file(encoder, fasta_file, tmp_path):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output)
    about = json.loads((tmp_path / "out.h5.json").read_text())
    assert about["run"]["weights_fingerprint"] == encoder.fingerprint
    assert about["input"]["path"] == str(fasta_file) and about["proteins"] == 40
    import hashlib

    digest = hashlib.sha256(fasta_file.read_bytes()).hexdigest()
    assert about["input"]["sha256"] == digest


# -------------------------------------------------------------------- messy input


def test_ids_are_kept_and_are_never_paths(encoder, tmp_path):
    names = [
        "../../etc/x",
        "/abs/olute",
        "a/b",
        "a",
        "..",
        ".",
        "x" * 300,
        "prot\u00e9in",
        "a%2Fb",
    ]
    proteins = {name: "MK" + "A" * i for i, name in enumerate(names)}
    source = write_fasta(tmp_path / "x.fasta", proteins)
    output = tmp_path / "deep" / "out.h5"
    for kind in (".h5", ".npz"):
        output = output.with_suffix(kind)
        embed(encoder, source, output)
    with h5py.File(output.with_suffix(".h5")) as file:
        assert len(file) == len(names)
        assert all(isinstance(value, h5py.Dataset) for value in file.values())
        by_id = {value.attrs["original_id"]: value.shape[0] for value in file.values()}
    assert by_id == {name: len(residues) for name, residues in proteins.items()}
    assert len(np.load(output.with_suffix(".npz")).files) == len(names)
    inside = sorted(path.name for path in output.parent.iterdir())
    assert inside == ["out.h5", "out.h5.json", "out.npz", "out.npz.json"]


@pytest.mark.parametrize(
    ("policy", "keys"),
    [("suffix", ["A", "A_2", "A_3", "B"]), ("first", ["A", "B"]), ("error", None)],
)
def test_duplicates_by_policy(encoder, tmp_path, policy, keys):
    source = tmp_path / "x.fasta"
    source.write_text(">A one\nMK\n>B\nMKT\n>A two\nACD\n>A one\nmk\n>A three\nWW\n")
    output = tmp_path / "out.h5"
    if keys is None:
        with pytest.raises(
            ValueError, match="'A' in lines 1 and 5; 'A' in lines 1 and 9"
        ):
            embed(encoder, source, output)
        return
    report = embed(encoder, source, output, on_duplicate=policy)
    vectors_by_key = read(output)
    assert list(vectors_by_key) == keys and report.repeated == 1
    assert len(report.skipped) == 4 - len(keys)
    if policy == "suffix":
        assert [len(vectors_by_key[key]) for key in keys] == [2, 3, 2, 3]
        again = embed(encoder, source, output, on_duplicate=policy)
        assert again.embedded == 0


def test_bad_records_stop_or_are_left_out(encoder, tmp_path):
    source = tmp_path / "x.fasta"
    source.write_text(">A\nMK\n>B\nMK1\n>C\n>D\nACD\n")
    with pytest.raises(fasta_problems.FastaError, match=r"x.fasta:4: "):
        embed(encoder, source, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()
    report = embed(encoder, source, tmp_path / "out.h5", on_bad="skip")
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("B", "a character that is no residue"),
        ("C", "no residues"),
    ]
    assert list(read(tmp_path / "out.h5")) == ["A", "D"]


def test_input_that_changes_meanwhile_is_an_error(encoder, fasta_file, tmp_path):
    def change(plan):
        write_fasta(fasta_file, random_proteins(40, seed=9))

    with pytest.raises(ValueError, match="changed while"):
        job.embed_fasta(encoder, fasta_file, tmp_path / "out.h5", on_plan=change)


def test_devices_share_the_work_and_change_nothing(encoder, fasta_file, tmp_path):
    import jax

    one, three = tmp_path / "one.h5", tmp_path / "three.h5"
    embed(encoder, fasta_file, one, batch_tokens=200)
    embed(encoder, fasta_file, three, batch_tokens=200, devices=jax.devices()[:3])
    assert one.read_bytes() == three.read_bytes()


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("at", [1, 2])
def test_stopped_while_merging_goes_on(
    encoder, fasta_file, tmp_path, monkeypatch, suffix, at
):
    options = {"per_residue": True, "per_protein": True}
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    embed(encoder, fasta_file, whole, **options)
    replace, calls = os.replace, []

    def stop(source, target):
        if "merged" in str(source):
            calls.append(target)
            if len(calls) == at:
                replace(source, target)
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(encoder, fasta_file, broken, **options)
    report = embed(encoder, fasta_file, broken, **options)
    assert report.embedded == 0
    for kind in ("per_residue", "per_protein"):
        first = whole.with_name(f"whole.{kind}{suffix}")
        second = broken.with_name(f"broken.{kind}{suffix}")
        assert first.read_bytes() == second.read_bytes()
    assert not parts_of(broken).exists()
