"""The guides' commands run, in their order, in an empty folder."""

import gzip
import os
import pathlib
import re
import subprocess
import sys

import pytest

from prottrans_jax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _commands(guide: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text()
    return re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)


def test_pretraining_guide(tmp_path):
    split = records.open(records.sample_dir()).split("train")
    some = list(range(300))
    with gzip.open(tmp_path / "proteins.fasta.gz", "wt") as file:
        for name, residues in zip(split.ids(some), split.read(some), strict=True):
            file.write(f">{name}\n{residues.decode()}\n")
    # The guide's reader has one CPU device.
    environment = os.environ | {"XLA_FLAGS": ""}
    commands = _commands("pretraining.md")
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(
            command.replace("python -m", f"{sys.executable} -m"),
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert (tmp_path / "run" / "checkpoints" / "9").is_dir()
    assert "unigram_entropy" in done.stdout


@pytest.mark.parametrize("name", ["sample", "test"])
def test_readme_names_its_commands_for_ci(name):
    text = (ROOT / "README.md").read_text()
    assert re.search(rf"<!-- command: {name} -->\n```bash\n.+\n```\n", text)
