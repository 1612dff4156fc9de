#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
usage="Creates a TPU VM or a slice of a pod.

  tpu_scripts/create.sh --name=xl --zone=europe-west4-a --type=v3-1024

  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        e.g. europe-west4-a (or TPU_ZONE)
  --project=PROJECT  Google Cloud project; gcloud's own by default (or TPU_PROJECT)
  --type=TYPE        accelerator type: v3-8, v3-1024, v4-512, v5litepod-256, v6e-256 ...
  --version=VERSION  runtime image (tpu-ubuntu2204-base; v6e: v2-alpha-tpuv6e)
  --spot             cheaper, may be taken away: the run goes on where it was saved
  --dry_run          only print the command"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TYPE=""
VERSION=tpu-ubuntu2204-base
SPOT=()
option() {
  case "$1" in
    --type) TYPE="$2" ;;
    --version) VERSION="$2" ;;
    --spot) SPOT=(--spot) ;;
    *) return 1 ;;
  esac
}
parse "$@"
[[ -n "$TYPE" ]] || die "give --type=TYPE, e.g. --type=v3-8"
tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" \
  ${SPOT[@]+"${SPOT[@]}"}
