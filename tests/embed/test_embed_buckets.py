"""Embedding from and to buckets: the bytes of a local run, also after kills."""

import gzip
import os
import signal
import subprocess
import sys

import pytest

from cases import embed_cases, stores
from cases.embed_cases import embed
import prottrans_jax
from prottrans_jax import cli
from prottrans_jax.embed import formats
from prottrans_jax.files import folders, locks, paths

# Embeds and dies without warning after some proteins.
KILLED = """
import os, signal, sys, time
import prottrans_jax
from prottrans_jax.embed import job, settings
from prottrans_jax.files import paths

def on_progress(progress):
    if progress.proteins == 25:
        journal = paths.place(sys.argv[3] + ".parts/journal.jsonl", "output")
        while not journal.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

encoder = prottrans_jax.load_encoder(sys.argv[1], dtype="float32")
options = settings.Options(commit_seconds=0, max_batch=5)
job.embed_fasta(encoder, sys.argv[2], sys.argv[3], options, on_progress=on_progress)
"""


def place(text):
    return paths.place(text, "--output")


@pytest.fixture(scope="module")
def many():
    return embed_cases.random_proteins(40)


def contents(root):
    """Bytes of every file that counts: OUTPUT.json holds the time."""
    root = place(str(root))
    if root.is_file():
        return {"": root.read_bytes()}
    return {name: (root / name).read_bytes() for name in folders.files_below(root)}


@stores.slow_on_s3
@pytest.mark.parametrize("name", ["x.h5", "x.zarr", "x.npz", "x.parquet"])
def test_an_output_in_a_bucket_has_the_bytes_of_a_local_one(
    encoder, fasta_file, bucket, tmp_path, name
):
    embed(encoder, fasta_file, tmp_path / name)
    url = f"{bucket}/{name}"
    embed(encoder, fasta_file, url)
    assert contents(url) == contents(tmp_path / name)
    names = {path.name for path in folders.children(place(bucket))}
    assert names == {name, f"{name}.json"}
    # The same job again computes nothing; another input keeps what is there.
    assert embed(encoder, fasta_file, url).reused == 40
    other = embed_cases.write_fasta(tmp_path / "other.fasta", {"Q1": "MKV"})
    report = embed(encoder, other, url)
    assert (report.embedded, report.kept) == (1, 40)
    assert sum(1 for _ in formats.keys(url)) == 41


@stores.slow_on_s3
def test_input_model_and_output_in_a_bucket_from_the_command_line(
    model_folder, fasta_file, bucket, tmp_path, capsys
):
    packed = place(bucket) / "in" / "x.fasta.gz"
    packed.write_bytes(gzip.compress(fasta_file.read_bytes()))
    folders.upload(model_folder, f"{bucket}/{model_folder.name}")
    words = ["embed", "--per-protein", "--no-progress", "--device", "cpu"]
    model, output = f"{bucket}/{model_folder.name}", f"{bucket}/out.h5"
    local = tmp_path / "out.h5"
    command = [*words, "-i", str(fasta_file), "-m", str(model_folder), "-o", str(local)]
    assert cli.main(command) == 0
    command = [*words, "-i", str(packed), "-m", model, "-o", output]
    assert cli.main(command) == 0
    assert contents(output) == contents(local)
    about = formats.metadata(output)
    assert about["model_source"] == model and about["input"]["path"] == str(packed)
    # Another run's output is replaced only on request, a file of the user's never.
    assert cli.main([*command, "--pool", "max"]) == 2
    assert cli.main([*command, "--pool", "max", "--overwrite"]) == 0
    (place(bucket) / "thesis.h5").write_bytes(b"text")
    assert cli.main([*command[:-1], f"{bucket}/thesis.h5", "--overwrite"]) == 2
    capsys.readouterr()
    assert cli.main(["verify", output, "-i", str(packed)]) == 0
    assert f"{output}: 40 proteins, per protein, sound." in capsys.readouterr().out
    assert cli.main(["info", output]) == 0
    assert cli.main(["info", model]) == 0
    assert cli.main(["reformat", output, f"{bucket}/out.csv"]) == 0
    assert sum(1 for _ in formats.keys(f"{bucket}/out.csv")) == 40
    capsys.readouterr()
    assert cli.main(["info", f"{bucket}/none.h5"]) == 2
    assert f"{bucket}/none.h5: no such file" in capsys.readouterr().err


@stores.slow_on_s3
def test_a_killed_job_resumes_from_the_bucket_and_writes_the_same_bytes(
    encoder, model_folder, fasta_file, bucket, tmp_path
):
    url, local = f"{bucket}/out.h5", tmp_path / "out.h5"
    embed(encoder, fasta_file, local, max_batch=5)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, model_folder, fasta_file, url],
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not folders.exists(place(url))
    report = embed(encoder, fasta_file, url, max_batch=5)
    assert report.resumed > 0 and report.embedded + report.resumed == 40
    assert contents(url) == contents(local)
    assert not folders.exists(place(f"{url}.parts"))


@stores.slow_on_s3
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("copying", marks=pytest.mark.slow),
        "deleting",
        pytest.param("uploading", marks=pytest.mark.slow),
        pytest.param("metadata", marks=pytest.mark.slow),
    ],
)
def test_a_zarr_folder_of_which_the_replacement_fails_loses_no_protein(
    encoder, fasta_file, bucket, faults, tmp_path, moment
):
    url = f"{bucket}/out.zarr"
    old = embed_cases.write_fasta(tmp_path / "old.fasta", {"Q1": "MKV", "Q2": "WYV"})
    embed(encoder, old, url)

    def matches(method, path):
        writes = method in ("POST", "PUT")
        target = path.rpartition("/rewriteTo/")[2]
        deletes = "delete" in path or "/batch/" in path
        return {
            "copying": writes and "before.residues/offsets" in target,
            "deleting": method == "DELETE" or (writes and deletes),
            "uploading": writes and "out.zarr/vectors/c/0" in target,
            "metadata": writes and "out.zarr/zarr.json" in target,
        }[moment]

    faults.add(stores.Fault(matches, times=1, status=403))
    with pytest.raises(PermissionError):
        embed(encoder, fasta_file, url)
    faults.clear()
    report = embed(encoder, fasta_file, url)
    assert (report.embedded, report.resumed, report.kept) == (0, 40, 2)
    assert set(formats.keys(url)) >= {"Q1", "Q2", "P0"}
    assert not folders.exists(place(f"{url}.parts"))


def test_a_second_job_of_the_same_output_is_refused(encoder, fasta_file, bucket):
    url = f"{bucket}/out.h5"
    with locks.acquire(f"{url}.parts/lock", output=url, advice=""):
        with pytest.raises(locks.LockedError, match="is being written by process"):
            embed(encoder, fasta_file, url)


def test_answers_that_are_cut_short_or_fail_change_nothing(
    encoder, fasta_file, bucket, faults, tmp_path
):
    source = place(bucket) / "x.fasta"
    source.write_bytes(fasta_file.read_bytes())
    embed(encoder, fasta_file, tmp_path / "out.h5")
    cut = stores.Fault(lambda m, p: m == "GET" and "x.fasta" in p, times=2, keep=100)
    lost = stores.Fault(lambda m, p: m == "GET" and "x.fasta" in p, status=503)
    faults.add(cut), faults.add(lost)
    embed(encoder, source, f"{bucket}/out.h5")
    assert cut.seen + lost.seen >= 2
    assert contents(f"{bucket}/out.h5") == contents(tmp_path / "out.h5")


def test_vectors_of_files_in_a_bucket_are_reused(encoder, fasta_file, bucket, tmp_path):
    embed(encoder, fasta_file, f"{bucket}/old.h5")
    report = embed(encoder, fasta_file, tmp_path / "x.h5", reuse=f"{bucket}/old.h5")
    assert (report.embedded, report.reused) == (0, 40)


@stores.slow_on_s3
def test_models_are_converted_and_exported_to_and_from_buckets(
    model_folder, bucket, capsys
):
    folders.upload(model_folder, f"{bucket}/tiny")
    for part in ("encoder", "all"):
        command = ["export", "--checkpoint", f"{bucket}/tiny", "--part", part]
        assert cli.main([*command, "--output", f"{bucket}/{part}"]) == 0
        assert f"-m {bucket}/{part}" in capsys.readouterr().out
        # Not replaced.
        assert cli.main([*command, "--output", f"{bucket}/{part}"]) == 1
    first, second = (
        prottrans_jax.load_encoder(source, dtype="float32")
        for source in (model_folder, f"{bucket}/encoder")
    )
    assert first.fingerprint == second.fingerprint
    assert (first.embed("MKV")[0] == second.embed("MKV")[0]).all()
    assert os.fspath(second.source) == f"{bucket}/encoder"
    with pytest.raises(FileNotFoundError, match=f"{bucket}/none"):
        prottrans_jax.load_encoder(f"{bucket}/none")
