#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
usage="Stops the training on all hosts of a slice; it saves a checkpoint first.

  tpu_scripts/stop.sh --name=xl --zone=europe-west4-a

train.sh with the same arguments goes on from there.

  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        (or TPU_ZONE)
  --project=PROJECT  (or TPU_PROJECT)
  --wait=SECONDS     how long to wait for the checkpoint before giving up (600)
  --dry_run          only print the command"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WAIT=600
option() {
  case "$1" in
    --wait) WAIT="$2" ;;
    *) return 1 ;;
  esac
}
parse "$@"
[[ "$WAIT" =~ ^[0-9]+$ ]] || die "--wait=$WAIT is not a number of seconds"
# SIGTERM on every host: they agree on a step, save it and exit. Nothing is killed.
on_all_workers "cd $REMOTE_DIR || exit 1; $alive; alive || { echo 'not training'; exit 0; }; \
pid=\$(cat train.pid); kill -TERM \$pid; \
for _ in \$(seq $WAIT); do alive || { rm -f train.pid; tail -n 3 train.log; exit 0; }; sleep 1; done; \
echo \"process \$pid still runs after $WAIT s; see $REMOTE_DIR/train.log\" >&2; exit 1"
