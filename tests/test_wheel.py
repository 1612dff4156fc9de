"""The package works from its wheel, in any folder, without the checkout."""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _copied(folder):
    """A copy of the checkout: a build writes into its source tree."""
    left_behind = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "*.so", "__pycache__"
    )
    return shutil.copytree(ROOT, folder / "source", ignore=left_behind)


def _install(folder, environment=os.environ):
    """Installs a copy of the checkout into `folder / "site"`."""
    _install_from(_copied(folder), folder, environment)


def _install_from(source, folder, environment):
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--target", str(folder / "site"), str(source)),
        ],
        check=True,
        cwd=source,
        env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    _install(folder)
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


@pytest.fixture(scope="module")
def installed_without_compiler(tmp_path_factory):
    """The same where PATH holds no compiler."""
    folder = tmp_path_factory.mktemp("no_compiler")
    (folder / "bin").mkdir()
    _install(folder, os.environ | {"PATH": str(folder / "bin")})
    return folder


def test_package_installs_without_a_compiler(installed_without_compiler):
    kernels = installed_without_compiler / "site/prottrans_jax/kernels"
    assert (kernels / "x86.py").exists() and not list(kernels.glob("*.so"))


def test_modules_deleted_since_the_last_build_are_not_installed(tmp_path):
    (tmp_path / "bin").mkdir()  # No compiler: faster.
    environment = os.environ | {"PATH": str(tmp_path / "bin")}
    source = _copied(tmp_path)
    gone = source / "prottrans_jax" / "gone.py"
    gone.touch()
    _install_from(source, tmp_path / "first", environment)
    gone.unlink()
    _install_from(source, tmp_path / "second", environment)
    installed = [tmp_path / x / "site/prottrans_jax" for x in ("first", "second")]
    assert [(x / "gone.py").exists() for x in installed] == [True, False]
    assert (installed[1] / "train.py").exists()


def test_a_build_downloads_setuptools_alone():
    # Kernels need headers of XLA, which a JAX of several hundred MB would bring.
    with (ROOT / "pyproject.toml").open("rb") as file:
        (required,) = tomllib.load(file)["build-system"]["requires"]
    assert required.startswith("setuptools>=")


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="not compiled for this kind of machine",
)
def test_info_says_that_a_compiler_was_missing(installed_without_compiler):
    done = _run(installed_without_compiler, "-m", "prottrans_jax.cli", "info", "--json")
    assert done.returncode == 0, done.stderr
    assert "without a C++ compiler" in json.loads(done.stdout)["CPU kernels"]


def test_source_distribution_has_all_that_is_compiled(tmp_path):
    source = _copied(tmp_path)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist")],
        check=True,
        cwd=source,
    )
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    kernels = ROOT / "prottrans_jax/kernels/x86_cc"
    wanted = {path.relative_to(ROOT).as_posix() for path in kernels.rglob("*.*")}
    assert wanted and not wanted - names
