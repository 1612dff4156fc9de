"""Writes a file of constraints/: versions that work together, found by pip.

  python scripts/make_constraints.py --python=python3.12

asks that Python's pip what it would install for setup.cfg, all extras but `dev`, `gpu`
and `t5x` included, into an empty environment, and writes constraints/py312.txt. Nothing
is installed. Keep the file if the tests pass with it:

  python3.12 -m venv env && env/bin/pip install -e '.[test]' -c constraints/py312.txt
  env/bin/python -m pytest -n 2

  python scripts/make_constraints.py --python=python3.13 --freeze=pip-freeze.txt \\
      --name=colab-2026-08

keeps to the versions of a `pip freeze`, here Colab's (pip-freeze.txt, and for TPUs
pip-freeze.tpu.txt, of github.com/googlecolab/backend-info), and writes those of its
packages that embedding and its tests use. It fails if any would have to be replaced.
"""

import argparse
import configparser
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# `gpu` adds CUDA's libraries, whose versions JAX bounds itself; t5x.txt is for `t5x`.
_NOT_ALL = ("dev", "gpu", "t5x")
_SCRIPT = "scripts/make_constraints.py"
_EMBEDDING = ("hub", "test-embed")


def main() -> None:
    """Resolves and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3.11", help="whose pip to ask")
    parser.add_argument("--freeze", type=pathlib.Path, help="output of pip freeze")
    parser.add_argument("--name", help="of the file, without .txt")
    arguments = parser.parse_args()
    if arguments.freeze and not arguments.name:
        parser.error("--freeze needs --name.")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    all_extras = config["options.extras_require"]
    extras = [name for name in all_extras if name not in _NOT_ALL]
    frozen = None
    if arguments.freeze:
        extras, frozen = list(_EMBEDDING), _read_freeze(arguments.freeze)
    texts = [config["options"]["install_requires"], *map(all_extras.get, extras)]
    requirements = [
        line.strip()
        for text in texts
        for line in text.splitlines()
        if line and not line.startswith("#")
    ]
    version, pins = _resolve(arguments.python, requirements, frozen or {})
    if frozen is not None:
        pins = {name: pin for name, pin in pins.items() if name in frozen}
    name = arguments.name or f"py{version.replace('.', '')}"
    command = " ".join(sys.argv[1:]) or "--python=python3.11"
    path = ROOT / "constraints" / f"{name}.txt"
    lines = [f"{package}=={pins[package]}\n" for package in sorted(pins)]
    head = f"# Python {version}. Made by: python {_SCRIPT} {command}\n"
    path.write_text(head + "".join(lines), encoding="utf-8")
    print(f"{path}: {len(pins)} packages")


def _resolve(
    python: str, requirements: list[str], frozen: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """Python's version, and the version of each package that pip would install."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={pin}\n" for name, pin in frozen.items())
        constraints.flush()
        done = subprocess.run(
            [
                *(python, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
                *("--quiet", "--report=-", "-c", constraints.name, *requirements),
            ],
            stdout=subprocess.PIPE,
        )
    if done.returncode:
        sys.exit(done.returncode)
    report = json.loads(done.stdout)
    packages = (item["metadata"] for item in report["install"])
    pins = {_normalized(package["name"]): package["version"] for package in packages}
    return report["environment"]["python_version"], pins


def _read_freeze(path: pathlib.Path) -> dict[str, str]:
    """Versions by package; without packages from URLs and builds like 2.11.0+cu128."""
    pairs = (line.strip().partition("==") for line in path.read_text().splitlines())
    return {
        _normalized(name): version
        for name, _, version in pairs
        if version and "+" not in version
    }


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
