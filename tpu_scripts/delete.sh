#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Deletes a TPU and the disks of its hosts. What is in a bucket stays.

  tpu_scripts/delete.sh --name=xl --zone=us-east5-a --api=compute
$common_usage; as for create.sh
  --queued           with --api=tpu: made with create.sh --queued or --flex_start
  --dry_run          only print the commands

gcloud asks before it deletes."

QUEUED=false
option() {
  case "$1" in
    --queued) QUEUED=true ;;
    *) return 1 ;;
  esac
}
parse "$@"
case "$API" in
  tpu)
    if $QUEUED; then
      cloud compute tpus queued-resources delete "$NAME" "--zone=$ZONE" --force
    else
      cloud compute tpus tpu-vm delete "$NAME" "--zone=$ZONE"
    fi
    ;;
  compute)
    cloud compute instance-groups managed delete "$NAME" "--zone=$ZONE"
    cloud compute instance-templates delete "$NAME-template"
    # A slice of one host has no policy.
    policy="$(cloud compute resource-policies list "--regions=${ZONE%-*}" \
      "--filter=name=$NAME-policy" "--format=value(name)")"
    ! $DRY_RUN || echo "$policy"
    [[ -z "$policy" ]] || cloud compute resource-policies delete "$NAME-policy" \
      "--region=${ZONE%-*}"
    ;;
  *) die "give --api=compute or --api=tpu (or TPU_API): how $NAME was made" ;;
esac
