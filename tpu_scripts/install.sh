#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Installs prottrans_jax for TPU on all hosts of a slice.

  tpu_scripts/install.sh --name=xl --zone=us-east5-a
$hosts_usage
  --wheel=FILE       install this wheel; by default one is built from this checkout
  --revision=URL@REV install a revision of a git repository, as
                     https://github.com/OWNER/prottrans_jax@main
  --python=VERSION   Python to use; the images' own 3.10 is too old (3.11, or that of the
                     wheel)
  --dry_run          only print the commands"

WHEEL=""
REVISION=""
PYTHON=""
option() {
  case "$1" in
    --wheel) WHEEL="$2" ;;
    --revision) REVISION="$2" ;;
    --python) PYTHON="$2" ;;
    *) return 1 ;;
  esac
}
parse "$@"
[[ -z "$WHEEL" || -z "$REVISION" ]] || die "--wheel and --revision exclude each other"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -n "$REVISION" ]]; then
  [[ "$REVISION" == *?@?* ]] || die "--revision=$REVISION is not URL@REVISION"
  package="prottrans_jax[train,tpu] @ git+$REVISION"
else
  if [[ -z "$WHEEL" ]]; then
    built="$(mktemp -d)"
    trap 'rm -rf "$built"' EXIT
    run python3 -m pip wheel -q --no-deps --wheel-dir="$built" "$checkout" \
      || die "no wheel could be built from $checkout"
    WHEEL="$(find "$built" -name 'prottrans_jax-*.whl')"
    ! $DRY_RUN || WHEEL="$built/prottrans_jax-VERSION.whl"
  elif [[ ! -f "$WHEEL" ]]; then
    die "no file $WHEEL; without --wheel one is built from this checkout"
  fi
  # Compiled kernels are for one version of Python: prottrans_jax-0.1.0-cp311-cp311-...
  if [[ -z "$PYTHON" && "$(basename "$WHEEL")" =~ -cp3([0-9]+)- ]]; then
    PYTHON="3.${BASH_REMATCH[1]}"
  fi
  package="./$(basename "$WHEEL")[train,tpu]"
fi
find_hosts
if [[ -n "$WHEEL" ]]; then
  LOCAL_FILE="$WHEEL"
  on_hosts over_scp
  report
fi
uv="\$HOME/.local/bin/uv"
on_all_hosts "set -e; mkdir -p $REMOTE_DIR; \
[ -x $uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh > /dev/null; \
$uv venv -q --clear --python ${PYTHON:-3.11} $REMOTE_DIR/venv; \
$uv pip install -q --python $REMOTE_DIR/venv/bin/python $(printf %q "$package"); \
$REMOTE_DIR/venv/bin/python -c 'import prottrans_jax; print(prottrans_jax.__version__)'"
