# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # set here or there, used there or here
# Sourced by the scripts beside it: options, --dry_run, and running things on workers.
# A script sets `usage` before, then calls `parse "$@"`.
set -euo pipefail

NAME="${TPU_NAME:-}"
ZONE="${TPU_ZONE:-}"
PROJECT="${TPU_PROJECT:-}"
DRY_RUN=false
REST=()
# Folder on every worker: Python environment, log and process id of the training.
REMOTE_DIR=prottrans_run
# For a worker's shell, in REMOTE_DIR: whether its training runs. The process id alone may
# by now be another program's.
# shellcheck disable=SC2016
alive='alive() { [ -f train.pid ] && grep -q prottrans_jax "/proc/$(cat train.pid)/cmdline" 2> /dev/null; }'

die() {
  echo "error: $*" >&2
  exit 2
}

# Reads the options that all scripts have. Those of one script are handled by its own
# function `option NAME VALUE`, which returns 1 for what it does not know. What follows
# -- goes into REST.
parse() {
  while (($#)); do
    case "$1" in
      --help | -h)
        echo "$usage"
        exit 0
        ;;
      --dry_run) DRY_RUN=true ;;
      --)
        shift
        REST=("$@")
        break
        ;;
      --*=*)
        case "$1" in
          --name=*) NAME="${1#*=}" ;;
          --zone=*) ZONE="${1#*=}" ;;
          --project=*) PROJECT="${1#*=}" ;;
          *) option "${1%%=*}" "${1#*=}" || die "unknown option $1; see --help" ;;
        esac
        ;;
      *) option "$1" "" || die "unknown option $1; see --help" ;;
    esac
    shift
  done
  [[ -n "$NAME" ]] || die "give --name=NAME (or set TPU_NAME)"
  [[ -n "$ZONE" ]] || die "give --zone=ZONE (or set TPU_ZONE)"
  $DRY_RUN || command -v gcloud > /dev/null \
    || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

# Runs a command, or with --dry_run prints it so that it could be pasted.
run() {
  if $DRY_RUN; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# tpu VERB ARGUMENTS...: gcloud for this TPU.
tpu() {
  local verb="$1"
  shift
  local where=("--zone=$ZONE")
  [[ -z "$PROJECT" ]] || where+=("--project=$PROJECT")
  run gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"
}

# Runs a shell command on all workers at once; fails if one fails.
on_all_workers() {
  tpu ssh "$NAME" --worker=all --command="$1"
}
