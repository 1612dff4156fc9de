"""The guides' commands run, in their order, in an empty folder."""

import gzip
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from cases import embed_cases, score_cases, slurm_cases
from prottrans_jax import cli
from prottrans_jax.checkpoints import checkpointing, run_identity
from prottrans_jax.data.records import corpora, store
from prottrans_jax.interop import huggingface
from prottrans_jax.models import t5

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _commands(guide: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text()
    return re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)


def test_pretraining_guide(tmp_path):
    split = store.open(corpora.sample_dir()).split("train")
    some = list(range(300))
    with gzip.open(tmp_path / "proteins.fasta.gz", "wt") as file:
        for name, residues in zip(split.ids(some), split.read(some), strict=True):
            file.write(f">{name}\n{residues.decode()}\n")
    commands = _commands("pretraining.md")
    assert len(commands) == 5
    output = _run(commands, tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "9").is_dir()
    assert "unigram_entropy" in output


def test_guides_to_finetuning_and_predicting(tmp_path):
    embed_cases.make_model(tmp_path / "MODEL", seed=0)
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNP"), 20)) for _ in range(60)]
    lines = ["id,sequence,label"]
    lines += [
        f"P{i},{s},{'many' if s.count('A') > 1 else 'few'}"
        for i, s in enumerate(sequences)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "proteins.fasta").write_text(f">P1\n{sequences[0]}\n")
    records = [
        {
            "id": f"P{i}",
            "sequence": s,
            "q3": "HEC" + "C" * 17,
            "split": "val" if i % 3 == 0 else "train",
        }
        for i, s in enumerate(sequences)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "structure.jsonl").write_text(text)
    output = _run(_commands("finetuning.md"), tmp_path)
    assert "validation: accuracy" in output
    code = (ROOT / "docs/finetuning.md").read_text().partition("```python\n")[2]
    (tmp_path / "example.py").write_text(code.partition("```")[0])
    assert "metric='accuracy'" in _run([f"{sys.executable} example.py"], tmp_path)
    _run(_commands("predicting.md"), tmp_path)
    table = (tmp_path / "labels.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["id", "prediction", "few", "many"]
    assert len(table) == 2
    assert json.loads((tmp_path / "labels.jsonl").read_text())["id"] == "P1"


# Records what it is called with; a slice of two hosts.
_GCLOUD = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in
  *"instances list"*) printf 'xl-1\\nxl-2\\n' ;;
  *"policies list"*) echo xl-policy ;;
  *" config "*) echo project ;;
esac
"""
# Builds a wheel, and trains.
_PYTHON = """#!/bin/bash
echo "python $*" >> "$CALLS"
for word in "$@"; do
  [[ "$word" != --wheel-dir=* ]] || touch "${word#*=}/prottrans_jax-1-py3-none-any.whl"
done
"""


def test_clusters_guide(tmp_path):
    environment = slurm_cases.programs(tmp_path / "bin") | {
        "CALLS": str(tmp_path / "calls")
    }
    slurm_cases.executable(tmp_path / "bin" / "gcloud", _GCLOUD)
    for name in ("python", "python3"):
        slurm_cases.executable(tmp_path / "bin" / name, _PYTHON)
    for name in ("tpu_scripts", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = _commands("clusters.md")
    assert len(commands) == 6
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    for part in (
        "instance-groups managed create xl --zone=us-east5-a",
        "compute scp",
        "--gin_file=meshes/v6e-256.gin --model_dir=gs://BUCKET/xl",
        "instance-groups managed delete xl",
    ):
        assert part in calls.replace("\\", "")
    trained = "supervise -- python -m prottrans_jax.train --gin_file=prot_t5_xl.gin"
    assert calls.count(trained) == 2  # One task on each of two nodes.
    assert (tmp_path / "logs" / "xl-2.log").is_file()


def _run(commands: list[str], folder: pathlib.Path) -> str:
    """Runs commands in a folder; returns what the last one prints."""
    # The guide's reader has one CPU device.
    environment = os.environ | {"XLA_FLAGS": ""}
    for command in commands:
        done = subprocess.run(
            re.sub(
                "^prottrans ",
                f"{sys.executable} -m prottrans_jax.cli ",
                command.replace("python -m", f"{sys.executable} -m"),
                flags=re.M,
            ),
            shell=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def test_t5x_guide(tmp_path):
    """Where T5X is missing, the commands that do without it."""
    text = (ROOT / "docs/t5x.md").read_text()
    pattern = r"^(?:<!-- needs: (\w+) -->\n)?```bash\n(.*?)^```"
    blocks = re.findall(pattern, text, flags=re.M | re.S)
    assert [needs for needs, _ in blocks] == ["network", "t5x", "t5x", "", "t5x"]
    (tmp_path / "gin").symlink_to(ROOT / "gin")
    has_t5x = importlib.util.find_spec("t5x") is not None
    chosen = ["", "t5x"] if has_t5x else [""]
    _run([block for needs, block in blocks if needs in chosen], tmp_path)
    assert (tmp_path / "for_t5x/checkpoint_2/checkpoint").is_file()
    if has_t5x:
        assert (tmp_path / "ours/checkpoints/6").is_dir()
        assert (tmp_path / "t5x_further/checkpoint_5").is_dir()


def test_interop_guide(tmp_path):
    # The model of sample.gin.
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=32,
        d_model=128,
        d_ff=512,
        dropout_rate=0.0,
    )
    params = t5.init_params(config, jax.random.key(1))
    huggingface.write(tmp_path / "theirs", config, jax.tree.map(np.asarray, params))
    commands = _commands("interop.md")
    assert len(commands) == 3
    _run(commands, tmp_path)
    half = huggingface.read(tmp_path / "half")
    assert half.stored_dtype == np.float16
    trained = huggingface.read(tmp_path / "trained")
    assert trained.config == huggingface.read(tmp_path / "theirs").config


@pytest.mark.parametrize("name", ["sample", "test"])
def test_readme_names_its_commands_for_ci(name):
    text = (ROOT / "README.md").read_text()
    assert re.search(rf"<!-- command: {name} -->\n```bash\n.+\n```\n", text)


def test_generation_guide(tmp_path):
    config = t5.T5Config(
        vocab_size=128,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=8,
        d_model=24,
        d_ff=40,
    )
    params = t5.init_params(config, jax.random.key(1))
    huggingface.write(tmp_path / "model", config, jax.tree.map(np.asarray, params))
    (tmp_path / "proteins.fasta").write_text(">one\nMKXAYIXKQR\n>two\nACDWXY\n")
    commands = _commands("generation.md")
    assert len(commands) == 2
    _run(commands, tmp_path)
    assert (tmp_path / "new.fasta").read_text().startswith(">generated_1 log_likelih")
    assert len((tmp_path / "filled.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "rewritten.fasta").is_file()
    text = (ROOT / "docs" / "generation.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MKT")


def test_embedding_guide(tmp_path):
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=8,
        d_model=24,
        d_ff=40,
    )
    with checkpointing.Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        state = {"params": t5.init_params(config, jax.random.key(0))}
        metadata = {"identity": run_identity.identity(model=config)}
        checkpointer.save(3, state, metadata)
    (tmp_path / "proteins.fasta").write_text(
        ">sp|P12345|AATM_RABIT Aspartate\nMKTAYIAKQR\n>second one\nACDWUY\n"
    )
    commands = _commands("embedding.md")
    assert len(commands) == 5
    _run(commands, tmp_path)
    assert (tmp_path / "proteins.parquet").is_file()
    text = (ROOT / "docs" / "embedding.md").read_text()
    blocks = [
        block
        for needs, block in re.findall(
            r"^(?:<!-- needs: ([\w, ]+) -->\n)?```python\n(.*?)^```",
            text,
            flags=re.M | re.S,
        )
        if all(map(importlib.util.find_spec, re.findall(r"\w+", needs)))
    ]
    checks = """
assert [x.shape for x in vectors] == [(7, 24), (8, 24)] and pooled.shape == (2, 24)
assert every[0].shape == (3, 7, 24) and hidden.shape == (2, 9, 24)
assert maps.shape == (2, 2, 8, 8)
"""
    code = "\n".join([*blocks, checks])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("P12345 (10, 24) sp|P12345|AATM_RABIT")


def test_guide_to_labelled_data(tmp_path):
    (command,) = _commands("labelled_data.md")
    printed = _run([command], tmp_path)
    assert "classes            C 12, E 4, H 12" in printed
    text = (ROOT / "docs" / "labelled_data.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("residue ('C', 'E', 'H')")
    assert "accuracy 0." in done.stdout and "p = " in done.stdout


def test_scoring_guide(tmp_path, monkeypatch, capsys):
    score_cases.write_model(tmp_path / "MODEL", "bert")
    (tmp_path / "proteins.fasta").write_text(">a\nMKTAYIAKQRQ\n>b\nPRTEIN\n")
    (tmp_path / "wild_type.fasta").write_text(">a\nPRTEIN\n")
    (tmp_path / "gaps.fasta").write_text(">a\nPR?EIX\n")
    table = "mutant,DMS_score\nP1A,0.5\nP1A:R2C,0.25\nN6D,0.75\n"
    (tmp_path / "variants.csv").write_text(table)
    distances = np.full((11, 11), 20.0)
    distances[1, 8] = distances[0, 10] = 6.0
    np.savez(tmp_path / "maps.npz", a=distances, b=np.full((6, 6), 20.0))
    monkeypatch.chdir(tmp_path)
    commands = "".join(_commands("scoring.md")).splitlines()
    assert len(commands) == 9
    for command in commands:
        # In this process: the guide has many commands, whose imports take seconds.
        program, *words = shlex.split(command)
        assert program == "prottrans"
        assert cli.main([*words, "--no-progress"]) == 0, command
    assert "short P@L/5: " in capsys.readouterr().out
    assert (tmp_path / "scores.csv").read_text().startswith("mutant,DMS_score,score")
    assert (tmp_path / "filled.csv").read_text().count("\n") == 1 + 2 * 3
    text = (ROOT / "docs" / "scoring.md").read_text()
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)), {})
    printed = capsys.readouterr().out
    assert re.match(r"[\d.]+ \(2,\) \(7, 20\) [A-Y]{3}\n", printed)
