#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Says for every host of a slice whether it trains, and the last line of its log.

  tpu_scripts/watch.sh --name=xl --zone=us-east5-a

Exit status 1 if a host does not train.
$hosts_usage
  --follow           show the log of the first host instead, until Ctrl-C
  --dry_run          only print the commands"

FOLLOW=false
option() {
  case "$1" in
    --follow) FOLLOW=true ;;
    *) return 1 ;;
  esac
}
parse "$@"
find_hosts
if $FOLLOW; then
  REMOTE_COMMAND="tail -n 50 -F $REMOTE_DIR/train.log"
  over_ssh "${HOSTS[0]}"
  exit
fi
on_all_hosts "cd $REMOTE_DIR 2> /dev/null || { echo 'not installed'; exit $REFUSED; }; $alive; \
last=\$(tail -n 1 train.log 2> /dev/null); \
if alive; then echo \"trains: \$last\"; else echo \"does not train: \$last\"; exit $REFUSED; fi"
