#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Starts the training of all hosts again, as train.sh started it last.

  tpu_scripts/restart.sh --name=xl --zone=us-east5-a

Hosts that still train are stopped first, with a checkpoint. Nothing is started unless
all have stopped.
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
find_hosts
((PARALLEL >= ${#HOSTS[@]})) || PARALLEL=${#HOSTS[@]}
on_all_hosts "cd $REMOTE_DIR || exit $REFUSED; $alive; $(stop_training "$WAIT")"
on_all_hosts "cd $REMOTE_DIR || exit $REFUSED; $alive; $(start_training)"
