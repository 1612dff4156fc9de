#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Stops the training on all hosts of a slice; it saves a checkpoint first.

  tpu_scripts/stop.sh --name=xl --zone=us-east5-a

restart.sh, or train.sh with the same arguments, goes on from there.
$hosts_usage
  --wait=SECONDS     how long to wait for the checkpoint before giving up (600)
  --dry_run          only print the commands"

WAIT=600
option() {
  case "$1" in
    --wait) WAIT="$(number "--wait=$2")" ;;
    *) return 1 ;;
  esac
}
parse "$@"
# A host that waits for its checkpoint keeps its connection: all are called at once.
find_hosts
((PARALLEL >= ${#HOSTS[@]})) || PARALLEL=${#HOSTS[@]}
on_all_hosts "cd $REMOTE_DIR || exit $REFUSED; $alive; $(stop_training "$WAIT")"
