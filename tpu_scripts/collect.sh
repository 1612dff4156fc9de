#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Copies the logs of all hosts into a folder: one file HOST.log each.

  tpu_scripts/collect.sh --name=xl --zone=us-east5-a --to=logs

Checkpoints and metrics are in --model_dir.
$hosts_usage
  --to=FOLDER        made if needed (logs)
  --dry_run          only print the commands"

TO=logs
option() {
  case "$1" in
    --to) TO="$2" ;;
    *) return 1 ;;
  esac
}
parse "$@"
find_hosts
REMOTE_COMMAND="cat $REMOTE_DIR/train.log"
on_hosts over_ssh
$DRY_RUN && exit
mkdir -p "$TO"
for host in "${HOSTS[@]}"; do
  mv "$OUT/$host.out" "$TO/$host.log"
  echo "$TO/$host.log, $(wc -l < "$TO/$host.log" | tr -d ' ') line(s)" > "$OUT/$host.out"
done
report
