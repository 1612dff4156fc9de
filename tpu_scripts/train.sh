#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
usage="Starts training on all hosts of a slice, or goes on with a stopped run.

  tpu_scripts/train.sh --name=xl --zone=europe-west4-a -- \\
      --gin_file=prot_t5_xl.gin --gin_file=meshes/v3-1024.gin \\
      --model_dir=/mnt/bucket/xl --data_dir=/mnt/bucket/bfd

What follows -- goes to python -m prottrans_jax.train. The same command again resumes from
the newest checkpoint in --model_dir. The training outlives this terminal; its log is
~/prottrans_run/train.log on every host.

  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        (or TPU_ZONE)
  --project=PROJECT  (or TPU_PROJECT)
  --single_host      the TPU is one host (v3-8, v5litepod-8): do not wait for others
  --follow           then show the log of worker 0; Ctrl-C leaves the training running
  --dry_run          only print the commands"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MULTIHOST=(--coordinator_address=auto)
FOLLOW=false
option() {
  case "$1" in
    --single_host) MULTIHOST=() ;;
    --follow) FOLLOW=true ;;
    *) return 1 ;;
  esac
}
parse "$@"
((${#REST[@]})) || die "say after -- what to train, e.g. -- --gin_file=prot_t5_xl.gin"
arguments="$(printf '%q ' ${MULTIHOST[@]+"${MULTIHOST[@]}"} "${REST[@]}")"
# One training a host: two would fight for the TPU.
on_all_workers "cd $REMOTE_DIR || exit 1; \
$alive; if alive; then echo \"already training, process \$(cat train.pid); stop.sh ends it\" >&2; exit 1; fi; \
setsid nohup venv/bin/python -m prottrans_jax.train $arguments >> train.log 2>&1 < /dev/null & \
echo \$! > train.pid"
if $FOLLOW; then
  tpu ssh "$NAME" --worker=0 --command="tail -n 50 -F $REMOTE_DIR/train.log"
fi
