"""What works with the base installation, and what names the extra that it needs."""

import os
import subprocess
import sys

import pytest

from cases import embed_cases

EXTRAS = """
    array_record gin huggingface_hub lz4 pyarrow seqio tensorboard tensorflow
    tensorflow_datasets zarr
"""


def _run(folder, *command):
    """Runs Python where the packages of the extras cannot be imported."""
    (folder / "sitecustomize.py").write_text(
        f"import sys; sys.modules |= dict.fromkeys({EXTRAS.split()})\n"
    )
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and proteins, with embeddings of them in proteins.h5."""
    folder = tmp_path_factory.mktemp("base")
    embed_cases.make_model(folder / "model", seed=0)
    embed_cases.write_fasta(folder / "p.fasta", embed_cases.random_proteins(3))
    return folder


def test_models_and_hdf5_take_no_extra(folder):
    code = """
import prottrans_jax
from prottrans_jax import cli
assert prottrans_jax.load_encoder("model").embed("PRTEINO").shape[0] == 7
for line in (
    "embed -i p.fasta -o p.h5 -m model",
    "verify p.h5 -i p.fasta",
    "reformat p.h5 p.npz",
    "info p.h5",
    "info model",
    "info",
    "models",
    "export --checkpoint=model --output=exported",
):
    assert cli.main(line.split()) == 0, line
"""
    done = _run(folder, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("form", ["t5x", "prottrans"])
def test_conversion_between_formats_takes_no_extra(folder, form):
    for arguments in (
        ("--input=model", f"--output={form}", f"--to={form}"),
        (f"--input={form}", f"--output=from_{form}", "--to=hf"),
    ):
        done = _run(folder, "-m", "prottrans_jax.convert", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("cli embed -i p.fasta -o p.parquet -m model", "'prottrans_jax[parquet]'"),
        ("cli embed -i p.fasta -o p.zarr -m model", "'prottrans_jax[zarr]'"),
        ("cli embed -i p.fasta -o q.h5 -m prot_t5 --download", "'prottrans_jax[hub]'"),
        ("convert --input=model --output=mtf --to=mtf", "tensorflow"),
    ],
)
def test_what_needs_an_extra_names_it_in_one_line(folder, arguments, advice):
    done = _run(folder, "-m", *f"prottrans_jax.{arguments}".split())
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert f"pip install {advice}" in done.stderr.splitlines()[-1]
