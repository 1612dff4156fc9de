"""Existing vectors are reused if equal, kept, or refused with a message."""

import json
import shutil
import types
from typing import Any

import h5py
import numpy as np
import pytest

from cases.embed_cases import embed, read, stop_after, write_fasta
import prottrans_jax
from prottrans_jax.embed import formats, job, outputs, settings, shards
from prottrans_jax.kernels import quantized, x86


def test_finished_output_takes_new_and_changed_proteins(
    encoder, fasta_file, proteins, tmp_path
):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output)
    before = read(output)
    unchanged = embed(encoder, fasta_file, output)
    assert (unchanged.embedded, unchanged.reused) == (0, 40)
    changed = dict(proteins) | {"P3": "MKTAYW", "Q1": "LLKM"}
    del changed["P7"]
    write_fasta(fasta_file, changed)
    report = embed(encoder, fasta_file, output)
    assert (report.embedded, report.reused, report.kept) == (2, 38, 1)
    after = read(output)
    assert after.keys() == changed.keys() | {"P7"}
    for key in after.keys() - {"P3", "Q1"}:
        np.testing.assert_array_equal(after[key], before[key])
    np.testing.assert_allclose(
        after["P3"], encoder.embed(["MKTAYW"])[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("suffix", ["npz", "parquet", "zarr", "csv"])
def test_proteins_of_an_earlier_run_are_kept_in_every_format(encoder, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    first, second = {"A": "MKTAYW", "B": "LLKM"}, {"B": "LLKM", "C": "WYV"}
    for number, proteins in enumerate((first, second)):
        source = write_fasta(tmp_path / f"{number}.fasta", proteins)
        report = embed(encoder, source, output, per_protein=True)
    assert (report.embedded, report.kept) == (2, 1)
    vectors_by_key = {entry.key: entry.array for entry in formats.entries(output)}
    assert vectors_by_key.keys() == {"A", "B", "C"}
    right = encoder.embed(["MKTAYW", "LLKM", "WYV"], pool="mean")
    for key, vector in zip("ABC", right, strict=True):
        np.testing.assert_allclose(vectors_by_key[key], vector, rtol=0, atol=1e-5)
    about = json.loads((tmp_path / f"out.{suffix}.json").read_text())
    assert about["proteins"] == 3


def test_vectors_of_other_models_and_layers_are_not_reused(
    encoder, other_model_folder, fasta_file, tmp_path
):
    made = tmp_path / "made.h5"
    embed(encoder, fasta_file, made)
    other = prottrans_jax.load_encoder(other_model_folder, dtype="float32")
    with pytest.raises(shards.OtherRunError, match="weights_fingerprint"):
        embed(other, fasta_file, tmp_path / "o.h5", reuse=(made,))
    with pytest.raises(shards.OtherRunError, match="layer"):
        embed(encoder, fasta_file, tmp_path / "l.h5", layers=0, reuse=(made,))
    pooled = tmp_path / "max.h5"
    embed(encoder, fasta_file, pooled, per_protein=True, pool="max")
    with pytest.raises(shards.OtherRunError, match="pooling"):
        embed(encoder, fasta_file, tmp_path / "p.h5", per_protein=True, reuse=(pooled,))
    # The mean can be made of vectors per residue.
    report = embed(
        encoder, fasta_file, tmp_path / "m.h5", per_protein=True, reuse=(made,)
    )
    assert (report.embedded, report.reused) == (0, 40)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"per_protein": True}, "outputs"),
        ({"layers": 2}, "layer"),
        ({"output_dtype": "float32"}, "dtype.residues"),
        ({"key": "token"}, "key"),
        ({"max_length": 50, "long": "chunk"}, "long"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(
    encoder, fasta_file, tmp_path, change, name, finished
):
    output = tmp_path / "out.h5"
    on_progress = None if finished else stop_after(3)
    try:
        job.embed_fasta(encoder, fasta_file, output, on_progress=on_progress)
    except KeyboardInterrupt:
        pass
    with pytest.raises(shards.OtherRunError, match=f"\n  {name}: "):
        embed(encoder, fasta_file, output, **change)
    report = embed(encoder, fasta_file, output, overwrite=True, **change)
    assert report.embedded == 40


def test_other_weights_under_the_same_name_are_refused(
    encoder, other_model_folder, fasta_file, tmp_path
):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output)
    other = prottrans_jax.load_encoder(other_model_folder, dtype="float32")
    assert other.name == encoder.name
    with pytest.raises(shards.OtherRunError, match="weights_fingerprint"):
        embed(other, fasta_file, output)


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_weights_in_a_renamed_folder_go_on(
    model_folder, fasta_file, proteins, tmp_path, finished
):
    renamed = shutil.copytree(model_folder, tmp_path / "renamed")
    encoder, same = (
        prottrans_jax.load_encoder(folder, dtype="float32")
        for folder in (model_folder, renamed)
    )
    assert encoder.name != same.name
    output = tmp_path / "out.h5"
    on_progress = None if finished else stop_after(30)
    limit = {"batch_tokens": 200}
    try:
        options = settings.Options(**limit)
        job.embed_fasta(encoder, fasta_file, output, options, on_progress=on_progress)
    except KeyboardInterrupt:
        pass
    report = embed(same, fasta_file, output, **limit)
    assert report.reused + report.resumed + report.embedded == len(proteins)
    assert report.reused == len(proteins) if finished else report.embedded


def test_an_output_that_an_earlier_version_wrote_goes_on_under_another_name(
    encoder, fasta_file, tmp_path
):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output)
    beside = tmp_path / "out.h5.json"
    about = json.loads(beside.read_text())
    about["run"]["model_name"] = "a name that is recorded"
    beside.write_text(json.dumps(about))
    with h5py.File(output, "a") as file:
        file.attrs[outputs.IDENTITY] = json.dumps(about["run"])
    more = write_fasta(tmp_path / "more.fasta", {"P0": "MKT", "NEW": "WYV"})
    assert embed(encoder, fasta_file, output).embedded == 0
    assert embed(encoder, more, output).embedded == 2


def test_outputs_of_another_compute_type_are_refused(
    encoder, model_folder, fasta_file, tmp_path
):
    output = tmp_path / "out.h5"
    embed(encoder, fasta_file, output)
    other = prottrans_jax.load_encoder(model_folder, dtype="int8")
    with pytest.raises(shards.OtherRunError, match=r"dtype_compute: .*int8"):
        embed(other, fasta_file, output)


@pytest.mark.parametrize(
    ("units", "products"),
    [((), "int8;"), (("avx512",), "int8;"), (("amx", "avx512"), "int8 weights, bf")],
)
def test_int8_identity_names_the_activation_type(units, products, monkeypatch):
    monkeypatch.setattr(x86, "units", lambda: units)
    encoder = types.SimpleNamespace(dtype="int8")
    job_settings: Any = types.SimpleNamespace(encoder=encoder)
    named = settings.Settings.dtype_compute.fget(job_settings)
    assert named.startswith(products) and quantized.ROUNDING in named


def test_reused_vectors_are_taken_if_they_fit(encoder, fasta_file, proteins, tmp_path):
    uniprot = tmp_path / "uniprot.h5"
    rows = {key: len(value) for key, value in proteins.items()}
    with h5py.File(uniprot, "w") as file:
        for key in ("P1", "P2", "P3"):  # As UniProt's: no attributes.
            file[key] = np.full((rows[key], 12), 0.5, np.float16)
        file["P4"] = np.zeros((rows["P4"] + 1, 12), np.float16)  # Another length.
        file["P5"] = np.zeros((rows["P5"], 12), np.float16)
        file["P5"].attrs["sequence_sha256"] = "of another sequence"
        file["P6"] = h5py.ExternalLink("elsewhere.h5", "P6")
        file["unasked"] = np.zeros((3, 12), np.float16)
    output = tmp_path / "out.h5"
    report = embed(encoder, fasta_file, output, reuse=str(uniprot))
    assert (report.reused, report.embedded) == (3, 37)
    vectors_by_key = read(output)
    assert vectors_by_key.keys() == proteins.keys()
    assert (vectors_by_key["P2"] == 0.5).all() and not (vectors_by_key["P4"] == 0).all()
    pooled = tmp_path / "pooled.h5"
    report = embed(encoder, fasta_file, pooled, reuse=str(uniprot), per_protein=True)
    assert report.reused == 3
    np.testing.assert_array_equal(read(pooled)["P1"], np.full(12, 0.5))
