#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Starts training on all hosts of a slice, or goes on with a stopped run.

  tpu_scripts/train.sh --name=xl --zone=us-east5-a -- \\
      --gin_file=prot_t5_xl.gin --gin_file=meshes/v6e-256.gin \\
      --model_dir=gs://BUCKET/xl --data_dir=gs://BUCKET/bfd

What follows -- goes to python -m prottrans_jax.train. The hosts join by themselves. The
same command again resumes from the newest checkpoint in --model_dir. The training
outlives this terminal and is started again after the loss of a host (prottrans
supervise); its log is ~/prottrans_run/train.log on every host.
$hosts_usage
  --once             do not start it again when it ends early
  --follow           then show the log of the first host; Ctrl-C leaves the training
                     running
  --dry_run          only print the commands"

SUPERVISE="venv/bin/prottrans supervise -- "
FOLLOW=false
option() {
  case "$1" in
    --once) SUPERVISE="" ;;
    --follow) FOLLOW=true ;;
    *) return 1 ;;
  esac
}
parse "$@"
((${#REST[@]})) || die "say after -- what to train, e.g. -- --gin_file=prot_t5_xl.gin"
find_hosts
line="exec ${SUPERVISE}venv/bin/python -m prottrans_jax.train $(printf '%q ' "${REST[@]}")"
# One training a host: two would fight for the TPU.
on_all_hosts "cd $REMOTE_DIR || exit $REFUSED; $alive; \
alive || printf '%s\\n' $(printf %q "$line") > command; $(start_training)"
if $FOLLOW; then
  REMOTE_COMMAND="tail -n 50 -F $REMOTE_DIR/train.log"
  over_ssh "${HOSTS[0]}"
fi
