#!/usr/bin/env bash
usage="Tests embedding with the oldest and the newest versions of what it depends on.

  scripts/check_bounds.sh [TEST ...]

makes an environment of each kind in a temporary folder, installs the package from a wheel,
and runs tests, such as tests/embed. The default takes a few minutes:
  $(cd "$(dirname "$0")" && grep -o '^tests=(.*' check_bounds.sh | tr -d '()' | cut -d= -f2)

  oldest              Python 3.11, constraints/oldest.txt: the lower bounds of setup.cfg
  colab-2026-08       Python 3.13, Colab's versions, none of which may be replaced; those of
                      its TPU runtime are resolved only
  newest              the newest Python here, no constraints

Prints a line for each. An environment whose Python is not here is left out with a line."
tests=(tests/test_base_install.py tests/embed/test_{embed_files,encoder_api,encoder_families}.py tests/interop/test_t5x.py)

set -euo pipefail
if [[ "${1:-}" == -* ]]; then
  echo "$usage"
  [[ "$1" == --help || "$1" == -h ]] && exit
  exit 2
fi
[[ $# -eq 0 ]] || tests=("$@")
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

python_of() { # The interpreter of a version, on PATH or of pyenv; fails if there is none.
  local candidates=("python$1")
  if command -v pyenv >/dev/null; then
    candidates+=("$(pyenv root)/versions/$1".*/bin/python)
  fi
  local candidate
  for candidate in "${candidates[@]}"; do
    # pyenv puts commands on PATH that fail for versions that are not selected.
    if "$candidate" -c 'import venv' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

build_wheel() { # Once for each Python: the kernels are compiled for it.
  [[ -d "$work/wheels-$1" ]] ||
    "$(python_of "$1")" -m pip wheel -q --no-deps -w "$work/wheels-$1" "$work/source"
}

nothing_replaced() { # Fails and names what pip would replace in the environment $1.
  "$1/bin/pip" install -q --dry-run --report="$1/report.json" "$2"
  # -I: the egg-info of a checkout in the current folder is not installed.
  "$1/bin/python" -I - "$1/report.json" <<'PYTHON'
from importlib import metadata
import json
import sys

installed = {one.name.lower().replace("_", "-") for one in metadata.distributions()}
with open(sys.argv[1]) as file:
    packages = [item["metadata"] for item in json.load(file)["install"]]
replaced = [
    f"{package['name']} {package['version']}"
    for package in packages
    if package["name"].lower().replace("_", "-") in installed
]
sys.exit(f"would be replaced: {', '.join(replaced)}" if replaced else 0)
PYTHON
}

check() { # NAME PYTHON: makes the environment, tests, and prints a line.
  local name=$1 python=$2 wheel
  local environment="$work/$name"
  local pins="$root/constraints/$name.txt"
  wheel=$(echo "$work/wheels-$python"/*.whl)
  "$(python_of "$python")" -m venv "$environment"
  case $name in
    colab-*)
      "$environment/bin/pip" install -q -r "$pins"
      nothing_replaced "$environment" "${wheel}[hub]"
      "$environment/bin/pip" install -q --dry-run --ignore-installed \
        -c "${pins%.txt}-tpu.txt" "${wheel}[hub]"
      ;;
    newest) pins=/dev/null ;;
  esac
  "$environment/bin/pip" install -q -c "$pins" "${wheel}[test-embed]"
  "$environment/bin/pip" check
  mkdir "$work/run-$name"
  cp -r "$work/source/tests" "$work/source/pyproject.toml" "$work/run-$name"
  cd "$work/run-$name"
  # Without the options of pyproject.toml: checks of annotations take a new jaxtyping.
  "$environment/bin/pytest" -q -o addopts= -m 'not slow' -p no:cacheprovider "${tests[@]}"
}

describe() { # NAME STATUS SECONDS: the line of an environment, and the log of a failed one.
  local versions
  versions=$("$work/$1/bin/python" 2>/dev/null - <<'PYTHON' || true
from importlib import metadata
import platform

names = ("jax", "flax", "numpy", "h5py")
versions = [f"{name} {metadata.version(name)}" for name in names]
print(f"Python {platform.python_version()}", *versions, sep=", ")
PYTHON
  )
  if [[ $2 -ne 0 ]]; then
    tail -n 40 "$work/$1.log"
    echo "$1: FAILED after $3 s. ${versions:-No environment was made.}"
  else
    echo "$1: ${versions}: $(tail -n 1 "$work/$1.log" | tr -d '=' | xargs), $3 s with the installation"
  fi
}

mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    [[ ! -e "$file" ]] || cp --parents -- "$file" "$work/source"
  done

names=(oldest colab-2026-08)
pythons=(3.11 3.13)
for version in 3.13 3.12 3.11; do
  if python_of $version >/dev/null; then
    names+=(newest)
    pythons+=("$version")
    break
  fi
done
statuses=0
processes=()
for i in "${!names[@]}"; do
  name=${names[i]} python=${pythons[i]}
  if ! python_of "$python" >/dev/null; then
    echo "$name: left out, there is no Python $python here"
    continue
  fi
  build_wheel "$python"
  (
    start=$SECONDS
    set +e # Outside of `||`, where bash would ignore `set -e` of the inner shell.
    (
      set -e
      check "$name" "$python"
    ) >"$work/$name.log" 2>&1
    status=$?
    describe "$name" "$status" $((SECONDS - start))
    exit "$status"
  ) &
  processes+=($!)
done
for process in "${processes[@]}"; do
  wait "$process" || statuses=1
done
exit "$statuses"
