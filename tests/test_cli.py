"""The console script: what it prints, writes and returns."""

import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

import h5py
import jax
import numpy as np
import pytest

from cases import embed_cases
from prottrans_jax import cli
from prottrans_jax.kernels import x86


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # Sizes of which a CPU with products of its own packs several proteins into a row.
    sizes = {"d_model": 32, "d_ff": 64, "num_heads": 1, "head_dim": 32}
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    return embed_cases.make_model(folder, seed=0, **sizes)


@pytest.fixture
def source(tmp_path):
    proteins = embed_cases.random_proteins(12, seed=5)
    return embed_cases.write_fasta(tmp_path / "x.fasta", proteins)


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "prottrans_jax.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
        **options,
    )


def test_embed_says_what_it_does(model, source, tmp_path):
    output = tmp_path / "out.h5"
    done = run("embed", "-i", source, "-o", output, "-m", model)
    assert done.returncode == 0, done.stderr
    for words in ("12 proteins", "longest", "free", "12 embedded", "peak memory"):
        assert words in done.stderr, done.stderr
    with h5py.File(output) as file:
        assert len(file) == 12


def test_module_and_old_flags_and_standard_input(model, source, tmp_path):
    output = tmp_path / "out.h5"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prottrans_jax.embed", "--input", "-"),
            *("--output", output, "--model", model, "--per_protein", "1", "-q"),
        ],
        input=source.read_bytes(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    with h5py.File(output) as file:
        assert all(value.shape == (32,) for value in file.values())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-o", "out.xyz"], 2, "selects the format, but '.xyz' is unknown. Choose one"),
        (["-o", "out"], 2, "output out: the file extension selects the format"),
        (["-m", "prot_brt"], 2, "prot_bert"),
        (["-m", "nowhere/at/all"], 2, "no such folder"),
        (["--long", "maybe"], 2, "maybe"),
        (["--layer", "77"], 2, "layer 77"),
        (["--pool", "cls", "--per-protein"], 2, "CLS"),
        (["--pool", "sum", "--per-protein"], 2, "Choose one of mean, max, cls."),
        (["--pool", "none", "--per-protein"], 2, "'none' (--pool) is not known. Cho"),
        (["--pool", "max"], 2, "--per-protein"),
        (["--long", "skip"], 2, "--max-length N"),
        (["--max-length", "30", "--chunk-overlap", "5"], 2, "--long chunk"),
        (["-i", "absent.fasta"], 2, "absent.fasta"),
        (["-i", "."], 2, "directory"),
        (["--max-length", "30"], 2, "--long skip"),
        (["--reuse", "absent.h5"], 2, "absent.h5"),
        (["--reuse", __file__], 2, "test_cli.py: not an HDF5 file"),
    ],
)
def test_mistakes_are_one_line(
    model, source, tmp_path, arguments, status, words, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = {"-i": str(source), "-o": "out.h5", "-m": str(model)}
    if arguments[0] in given:
        del given[arguments[0]]
    words_given = [word for pair in given.items() for word in pair]
    assert cli.main(["embed", *words_given, *arguments]) == status
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "out.h5").exists()


def test_poolings_that_reformat_takes_are_listed(tmp_path, capsys):
    words = ["reformat", str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    assert cli.main([*words, "--pool", "sum"]) == 2
    said = "'sum' is not known. Choose one of mean, max, or none for vectors per residu"
    assert said in capsys.readouterr().err


def test_modes_of_training_name_their_commands(capsys):
    assert cli.main(["train", "--gin_file=sample.gin"]) == 2
    assert "python -m prottrans_jax.train" in capsys.readouterr().err
    assert cli.main(["eval"]) == 2
    assert "python -m prottrans_jax.evaluate" in capsys.readouterr().err


def test_convert_names_the_commands_for_embedding_files_and_checkpoints(capsys):
    assert cli.main(["convert", "a.h5", "b.npz"]) == 2
    error = capsys.readouterr().err
    assert "`prottrans reformat`" in error and error.count("\n") == 1
    assert "`python -m prottrans_jax.convert`" in error


def test_missing_device_is_an_error_that_names_the_flag(model, source, tmp_path):
    given = ("embed", "-i", source, "-o", tmp_path / "out.h5", "-m", model)
    done = run(*given, "--device", "gpu")
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "--device gpu: JAX cannot start this device" in done.stderr
    assert "--device cpu" in done.stderr


def test_revision_of_a_repository_and_the_cache_of_prott5_embedder(
    source, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    repository = cache / "models--Rostlab--prot_t5_xl_half_uniref50-enc"
    commits = ["6a1b3c5d7e9f", "0f9e8d7c6b5a"]
    for seed, commit in enumerate(commits):
        embed_cases.make_model(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[0])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    given = ["embed", "-i", str(source), "--per_protein", "1", "-q"]

    def embed(name, *flags):
        output = tmp_path / name
        assert cli.main([*given, "-o", str(output), *flags]) == 0
        with h5py.File(output) as file:
            assert file.attrs["model_name"] == "prot_t5"
            return file.attrs["model_revision"], file["P0"][()]

    # As its scripts call it: the folder that transformers downloaded into.
    first, vectors = embed("main.h5", "--model", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    second, others = embed("other.h5", "--revision", commits[1][:8])
    assert [first, second] == commits
    assert not np.allclose(vectors, others)
    lost = [*given, "-o", str(tmp_path / "lost.h5"), "--revision", "v9"]
    assert cli.main(lost) == 2


def test_what_is_left_out_is_named_and_the_status_says_so(model, source, tmp_path):
    with open(source, "a") as file:
        file.write(">BAD\nMK1\n>GAPS\nM--K.*\n")
    output = tmp_path / "out.h5"
    given = ("embed", "-i", source, "-o", output, "-m", model)
    stopped = run(*given)
    assert stopped.returncode == 3
    assert f"{source}:26: " in stopped.stderr and "--on-bad skip" in stopped.stderr
    assert not output.exists()
    done = run(*given, "--on-bad", "skip")
    assert done.returncode == 3
    assert "3 gaps, 1 stop at the end" in done.stderr
    assert "Left out 1" in done.stderr and "BAD" in done.stderr
    assert "BAD\t26" in (tmp_path / "out.h5.skipped.tsv").read_text()
    assert output.exists()


def test_info_without_a_path_describes_the_machine(capsys, monkeypatch):
    assert cli.main(["info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["jax"] == importlib.metadata.version("jax")
    assert about["devices"] == [str(device) for device in jax.devices()]
    assert about["CPU kernels"].startswith("compiled for" if x86.units() else "XLA's: ")
    monkeypatch.setattr(x86, "_register", lambda: ((), "No module named '_x86'"))
    assert cli.main(["info"]) == 0
    assert "XLA's: No module named '_x86'" in capsys.readouterr().out


def test_info_reformat_and_verify(model, source, tmp_path, capsys):
    output = str(tmp_path / "out.h5")
    cli.main(["embed", "-i", str(source), "-o", output, "-m", str(model), "-q"])
    capsys.readouterr()
    assert cli.main(["info", output, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["proteins"], about["vectors"]) == (12, "per residue")
    assert about["d_model"] == [32] and about["model_name"] == "tiny"
    assert cli.main(["info", str(model)]) == 0
    assert "t5" in capsys.readouterr().out
    assert cli.main(["verify", output, "-i", str(source)]) == 0
    pooled = str(tmp_path / "out.csv")
    assert cli.main(["reformat", output, pooled, "--pool", "mean"]) == 0
    assert len(pathlib.Path(pooled).read_text().splitlines()) == 13
    with open(source, "a") as file:
        file.write(">NEW\nMKT\n>BAD\nMK1\n")
    assert cli.main(["verify", output, "-i", str(source)]) == 3
    said = capsys.readouterr()
    assert "NEW: missing" in said.out and f"{source}:28: " in said.out
    assert "2 faults" in said.err
    assert cli.main(["reformat", output, output]) == 2  # Exists.
    junk = tmp_path / "junk.h5"
    junk.write_text("no such format")
    for command in (["info"], ["verify"]):
        assert cli.main([*command, str(junk)]) == 2
        assert f"{junk}: not an HDF5 file" in capsys.readouterr().err


def test_negative_layers_need_no_equals_sign(model, source, tmp_path):
    output = str(tmp_path / "out.npz")
    given = ["embed", "-i", str(source), "-o", output, "-m", str(model), "-q"]
    assert cli.main([*given, "--layer", "-2,-1", "--per-protein"]) == 0
    assert {x.shape for x in np.load(output).values()} == {(2, 32)}


def test_verify_tells_a_right_model_from_a_wrong_one(model, source, tmp_path, capsys):
    encoder_of = embed_cases.make_model(tmp_path / "wrong", seed=3)
    golden = str(tmp_path / "golden.npz")
    given = ["embed", "-i", str(source), "-m", str(model), "-q", "-o", golden]
    assert cli.main([*given, "--output-dtype", "float32"]) == 0
    check = ["verify", "--golden", golden, "-i", str(source), "-m"]
    assert cli.main([*check, str(model)]) == 0
    assert capsys.readouterr().out.count("ok  ") == 12
    assert cli.main([*check, str(encoder_of)]) == 3


def test_models_are_listed(capsys):
    assert cli.main(["models", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert {"prot_t5", "prot_bert", "prot_xlnet"} <= names


# What becomes of each damaged file with bad records left out and the first of two
# proteins of one id kept: embedded, repeated, left out. Titin (68,700 residues in one
# record) is in the slow set.
MESSY = {
    "duplicate_ids.fasta": (3, 1, 1),
    "empty.fasta": (0, 0, 1),
    "header_only.fasta": (0, 0, 5),
    "illegal_amino_acids.fasta": (3, 0, 0),
    "latin1_header.fasta": (0, 0, 1),
    "mixed_problems.fasta": (8, 0, 4),
    "no_header_first.fasta": (5, 0, 1),
    "odd_ids.fasta": (4, 0, 1),
    "openfold_6KWC_head.a3m": (60, 0, 0),
    "truncated.fasta.gz": (4, 0, 1),
    "unparsable.fasta": (2, 0, 1),
    "utf8_header.fasta": (2, 0, 0),
}


@pytest.mark.parametrize("name", MESSY)
def test_damaged_files_have_a_stated_outcome(shared, model, tmp_path, name, capsys):
    embedded, _, left_out = MESSY[name]
    source = str(shared / "data/messy" / name)
    given = ["embed", "-i", source, "-m", str(model), "--per-protein"]
    strict = cli.main([*given, "-o", str(tmp_path / "strict.h5")])
    said = capsys.readouterr().err
    if left_out:
        assert strict in (2, 3) and name in said
    else:
        assert strict == 0
    lenient = ["--on-bad", "skip", "--on-duplicate", "first"]
    output = tmp_path / "out.h5"
    status = cli.main([*given, "-o", str(output), *lenient])
    assert status == (3 if left_out else 0)
    with h5py.File(output) as file:
        assert len(file) == embedded
    if left_out:
        listed = pathlib.Path(f"{output}.skipped.tsv").read_text().splitlines()
        assert len(listed) == left_out + 1


def kill_drill(model, folder, count, kills, seed):
    """Kills a job at random moments, then once while it merges; returns the kills."""
    proteins = embed_cases.random_proteins(count, seed=1)
    source = embed_cases.write_fasta(folder / "x.fasta", proteins)
    code = (
        "import sys\n"
        "import time\n"
        "from prottrans_jax import cli\n"
        "from prottrans_jax.embed import computing, writers\n"
        # Or the merge may have ended when the kill comes.
        "add = writers._Hdf5.add\n"
        "writers._Hdf5.add = lambda *given: (time.sleep(0.001), add(*given))\n"
        "computing._COMMIT_BYTES = 20000; sys.exit(cli.main(sys.argv[1:]))"
    )

    def start(output):
        return subprocess.Popen(
            [
                *(sys.executable, "-c", code, "embed", "-i", source, "-o", output),
                *("-m", model, "-q"),
            ],
            env=os.environ | {"XLA_FLAGS": ""},
        )

    whole, broken = folder / "whole.h5", folder / "broken.h5"
    assert start(whole).wait() == 0
    generator = np.random.default_rng(seed)
    parts = folder / "broken.h5.parts"
    merged = parts / "merged.residues.h5"
    killed = 0

    def kill_when(happened, delay):
        nonlocal killed
        process = start(broken)
        while process.poll() is None and not happened():
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()

    for _ in range(kills):
        # Somewhere between start-up and end: mostly after it has committed something.
        before = journal_size(parts)
        if generator.random() < 0.2:
            kill_when(lambda: True, generator.uniform(0, 2.0))
        else:
            committed = functools.partial(has_grown, parts, before)
            kill_when(committed, generator.uniform(0, 0.05))
    before = killed
    kill_when(merged.exists, 0.01)  # This file is being written then.
    assert killed > before and not broken.exists()
    assert start(broken).wait() == 0
    assert broken.read_bytes() == whole.read_bytes()
    with h5py.File(broken) as file:
        assert set(file) == set(proteins)
    assert not parts.exists()
    return killed


def journal_size(parts):
    """Bytes of the list of committed shards."""
    try:
        return (parts / "journal.jsonl").stat().st_size
    except FileNotFoundError:
        return 0


def has_grown(parts, before):
    return journal_size(parts) > before


def test_killed_job_goes_on_and_writes_the_same_bytes(model, tmp_path):
    assert kill_drill(model, tmp_path, count=600, kills=2, seed=0) >= 1


@pytest.mark.slow
def test_embedding_survives_twenty_kills(model, tmp_path):
    assert kill_drill(model, tmp_path, count=20_000, kills=20, seed=1) == 21
