"""The package works from its wheel, in any folder, without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: the build writes into its source tree, where another worker builds too.
    source = folder / "source"
    left_behind = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "*.so", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=left_behind)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--target", str(folder / "site"), str(source)),
        ],
        check=True,
        cwd=folder,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    return folder


def _run(installed, *command):
    # First on the path, so the checkout's editable install is not what is found.
    return subprocess.run(
        [sys.executable, *command],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed / "site")},
        capture_output=True,
        text=True,
    )


def test_wheel_has_the_version_of_the_package(installed):
    code = """
from importlib import metadata
import prottrans_jax
(built,) = metadata.distributions(path=["site"])
assert built.version == prottrans_jax.__version__, built.version
"""
    done = _run(installed, "-c", code)
    assert done.returncode == 0, done.stderr


def test_tasks_sample_and_leaves_come_with_the_wheel(installed):
    code = """
import pathlib, gin, prottrans_jax, prottrans_jax.tasks
from prottrans_jax.config import reading
from prottrans_jax.data.records import corpora, store
site = pathlib.Path("site").resolve()
for module in (prottrans_jax, prottrans_jax.tasks):
    assert site in pathlib.Path(module.__file__).resolve().parents, module
assert hasattr(gin, "parse_config"), gin
assert "sample.gin" in reading.leaves(), reading.leaves()
assert store.open(corpora.sample_dir()).split("train").num_records > 1000
"""
    done = _run(installed, "-c", code)
    assert done.returncode == 0, done.stderr


def test_train_finds_leaves_from_any_folder_and_names_them(installed):
    done = _run(installed, "-m", "prottrans_jax.train", "--gin_file=sampel.gin")
    assert done.returncode == 2
    assert "sample.gin" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("folder", "inside", "pattern"),
    [
        ("prottrans_jax", "prottrans_jax", "*.py"),
        ("tasks", "prottrans_jax/tasks", "*.py"),
        ("gin", "prottrans_jax/gin", "*.gin"),
    ],
)
def test_wheel_leaves_no_file_behind(installed, folder, inside, pattern):
    here, there = ROOT / folder, installed / "site" / inside
    wanted = {path.relative_to(here) for path in here.rglob(pattern)}
    assert wanted
    assert not [path for path in wanted if not (there / path).exists()]
