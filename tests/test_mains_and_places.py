"""The mains: `~` is home, URLs and repeated flags are refused, nothing is lost."""

import os
import subprocess
import sys

import pytest

_CONVERT = ["convert", "--to=hf"]
_TRAIN = ["train", "--gin_file=sample.gin"]


def run(main, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", f"prottrans_jax.{main}", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*_CONVERT, "--input=x", "--output=hdfs://b/x"], "--output=hdfs://b/x"),
        ([*_CONVERT, "--input=t5x:hdfs://b/x", "--output=x"], "--input=hdfs://b/x"),
        (["export", "--checkpoint=hdfs://b", "--output=x"], "--checkpoint=hdfs://b"),
        (["prepare", "--input=a", "--output=hdfs://b/x"], "--output=hdfs://b/x"),
        (["prepare", "--input=hdfs://b/a", "--output=x"], "--input=hdfs://b/a"),
        ([*_TRAIN, "--model_dir=x", "--data_dir=gs:/b"], "gs:/b"),
    ],
)
def test_other_urls_are_refused_before_anything_is_made(tmp_path, words, said):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    way_out = "written gs://BUCKET/PATH" if said == "gs:/b" else "gs:// and s3://"
    assert said in done.stderr and way_out in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        [*_CONVERT, "--input=a", "--output=x", "--output=y"],
        ["export", "--checkpoint=a", "--checkpoint=b", "--output=x"],
        ["prepare", "--input=a", "--output=x", "--output=y"],
        [*_TRAIN, "--model_dir=x", "--model_dir=y"],
        ["evaluate", "--gin_file=sample.gin", "--step=1", "--step=2"],
        ["precompile", "--gin_file=sample.gin", "--table=a", "--table=b"],
    ],
)
def test_a_second_value_of_a_flag_is_refused(tmp_path, words):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "is the second value of this flag" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_inputs_of_prepare_may_be_repeated_and_lie_in_the_home_folder(tmp_path):
    for name in "ab":
        records = "".join(f">{name}{i}\n{'MKTAYIAKQR'[i:]}\n" for i in range(5))
        (tmp_path / f"{name}.fasta").write_text(records.replace("MK", f"{name}K"))
    flags = ["--output=~/out", "--validation_fraction=0.2", "--num_processes=1"]
    done = run(
        "prepare",
        *("--input=~/a.fasta", "--input=~/b.fasta", *flags),
        env=os.environ | {"HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Read 10 records" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"a.fasta", "b.fasta", "out"}


def test_precompile_replaces_no_file_of_the_users(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    words = ["--gin_file=sample.gin", "--topology=v3:2x2", "--table=README.md"]
    done = run("precompile", *words, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "README.md was not made by this program" in done.stderr
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
