"""Clashing versions: one line with what is there, what is needed and the repair."""

import os
import subprocess
import sys

import pytest


def _run(site, *command):
    """Runs Python where `site` holds packages that come before the installed ones."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def _install(site, name, version, requires=(), source=""):
    """Makes a package with metadata, as pip does."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    if source:
        (site / f"{name}.py").write_text(source)


@pytest.mark.parametrize("main", ["train", "evaluate", "prepare", "precompile"])
def test_main_names_version_present_and_versions_needed(tmp_path, main):
    _install(tmp_path / "site-packages", "jax", "0.7.2")
    done = _run(tmp_path / "site-packages", "-m", f"prottrans_jax.{main}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "jax is 0.7.2 (needs >=0.10.2,<0.13)" in line
    assert f"{sys.executable} -m pip install 'prottrans_jax[train" in line


def test_main_names_what_is_missing(tmp_path):
    wanted = ['no_such_package>=2; extra == "train"', 'other; extra == "beam"']
    _install(tmp_path / "site-packages", "prottrans_jax", "0.1.0", wanted)
    done = _run(tmp_path / "site-packages", "-m", "prottrans_jax.train")
    (line,) = done.stderr.splitlines()
    assert "no_such_package is not installed (needs >=2)" in line
    assert "other" not in line.partition("Repair")[0]


def test_jaxlib_that_jax_refuses_is_named(tmp_path):
    _install(tmp_path / "site-packages", "jaxlib", "0.1.0")
    done = _run(tmp_path / "site-packages", "-m", "prottrans_jax.train")
    (line,) = done.stderr.splitlines()
    assert "jaxlib is 0.1.0 (needs " in line


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "prottrans_jax.train", "--gin_file=sample.gin", "--model_dir=run"),
        ("-m", "prottrans_jax.prepare", "--task=sample", "--output=records"),
    ],
    ids=["train", "prepare"],
)
def test_libraries_that_do_not_import_together_are_one_line(tmp_path, command):
    source = "raise TypeError('gencode 7.36.1\\nruntime 6.33.6')\n"
    _install(tmp_path / "site-packages", "seqio", "0.0.20", source=source)
    done = _run(tmp_path / "site-packages", *command)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert "seqio 0.0.20 cannot be imported" in line
    assert "TypeError: gencode 7.36.1 runtime 6.33.6" in line
    assert "pip install 'prottrans_jax[train" in line


def test_errors_in_modules_of_the_user_keep_their_traceback(tmp_path):
    site = tmp_path / "mine"
    site.mkdir()
    (site / "my_tasks.py").write_text("1 / 0\n")
    (tmp_path / "mine.gin").write_text("include 'sample.gin'\nimport my_tasks\n")
    flags = ("--gin_file=mine.gin", "--model_dir=run", "--trust_config")
    done = _run(site, "-m", "prottrans_jax.train", *flags)
    assert 'my_tasks.py", line 1' in done.stderr
    assert "ZeroDivisionError" in done.stderr
