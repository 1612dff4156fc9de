#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
usage="Deletes a TPU and the disks of its hosts. What is in a bucket stays.

  tpu_scripts/delete.sh --name=xl --zone=europe-west4-a

  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        (or TPU_ZONE)
  --project=PROJECT  (or TPU_PROJECT)
  --dry_run          only print the command

gcloud asks before it deletes."
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

option() { return 1; }
parse "$@"
tpu delete "$NAME"
