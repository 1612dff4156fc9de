#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
usage="Installs prottrans_jax for TPU on all hosts of a slice.

  tpu_scripts/install.sh --name=xl --zone=europe-west4-a --wheel=dist/prottrans_jax-0.1.0-py3-none-any.whl

  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        (or TPU_ZONE)
  --project=PROJECT  (or TPU_PROJECT)
  --wheel=FILE       install this wheel (python -m build --wheel makes one); by default
                     the released package
  --python=VERSION   Python to use; the images' own 3.10 is too old (3.11)
  --dry_run          only print the commands"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WHEEL=""
PYTHON=3.11
option() {
  case "$1" in
    --wheel) WHEEL="$2" ;;
    --python) PYTHON="$2" ;;
    *) return 1 ;;
  esac
}
parse "$@"
package="prottrans_jax[train,tpu]"
if [[ -n "$WHEEL" ]]; then
  [[ -f "$WHEEL" ]] || die "no file $WHEEL; python -m build --wheel makes one in dist/"
  tpu scp "$WHEEL" "$NAME:" --worker=all
  package="./$(basename "$WHEEL")[train,tpu]"
fi
on_all_workers "set -e; mkdir -p $REMOTE_DIR; python3 -m pip install -q --user uv; \
~/.local/bin/uv venv -q --clear --python $PYTHON $REMOTE_DIR/venv; \
~/.local/bin/uv pip install -q --python $REMOTE_DIR/venv/bin/python $(printf %q "$package")"
on_all_workers "$REMOTE_DIR/venv/bin/python -c 'import prottrans_jax; print(prottrans_jax.__version__)'"
