#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="Creates a TPU VM or a slice of a pod.

  tpu_scripts/create.sh --name=xl --zone=us-east5-a --type=v6e-256 --spot
$common_usage;
                     by default compute for v5p and v6e, tpu for the others, which
                     Compute Engine does not have
  --type=TYPE        accelerator type: v2-8, v3-1024, v4-512, v5litepod-256, v5p-256,
                     v6e-256 ...
  --spot             cheaper, may be taken away: the run goes on where it was saved
  --flex_start=TIME  wait for capacity, keep it for TIME, at most 7d
  --queued           with --api=tpu: a queued resource, which waits for capacity
  --version=VERSION  another runtime version; with --api=compute another image family of
                     ubuntu-os-accelerator-images
  --disk=SIZE        with --api=compute: boot disk (200GB)
  --dry_run          only print the commands"

TYPE=""
SPOT=false
FLEX=""
QUEUED=false
VERSION=""
DISK=200GB
option() {
  case "$1" in
    --type) TYPE="$2" ;;
    --spot) SPOT=true ;;
    --flex_start) FLEX="$2" ;;
    --queued) QUEUED=true ;;
    --version) VERSION="$2" ;;
    --disk) DISK="$2" ;;
    *) return 1 ;;
  esac
}
parse "$@"
[[ -n "$TYPE" ]] || die "give --type=TYPE, e.g. --type=v3-8"
! $SPOT || [[ -z "$FLEX" ]] || die "--spot and --flex_start exclude each other"
size="${TYPE#*-}"
[[ "$TYPE" == *-* && "$size" =~ ^[1-9][0-9]*$ ]] \
  || die "--type=$TYPE is not a generation and a number, as v6e-256"
# Runtime versions of the Cloud TPU API. Source: "TPU software versions", table "PyTorch
# and JAX", https://docs.cloud.google.com/tpu/docs/runtimes: v4 and older, v5e, v5p, v6e.
case "$TYPE" in
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) die "--type=$TYPE: known are v2, v3, v4, v5litepod, v5p and v6e" ;;
esac
if [[ -z "$API" ]]; then
  API=tpu
  [[ ! "$TYPE" =~ ^(v5p|v6e)- ]] || API=compute
fi

if [[ "$API" == tpu ]]; then
  flags=("--zone=$ZONE" "--accelerator-type=$TYPE")
  ! $SPOT || flags+=(--spot)
  if [[ -n "$FLEX" ]]; then
    # Flags of `gcloud alpha` 528: https://docs.cloud.google.com/tpu/docs/request-using-flex-start
    cloud alpha compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
      "${flags[@]}" "--runtime-version=${VERSION:-$runtime}" \
      --provisioning-model=flex-start "--max-run-duration=$FLEX"
  elif $QUEUED; then
    cloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
      "${flags[@]}" "--runtime-version=${VERSION:-$runtime}"
  else
    cloud compute tpus tpu-vm create "$NAME" "${flags[@]}" \
      "--version=${VERSION:-$runtime}"
  fi
  exit
fi

# Compute Engine: a template, and a managed instance group of its VMs. A workload policy
# with a topology makes several VMs a slice, all or none ("bulk").
# Sources: https://docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice
# and .../tpu-resources-in-compute-engine. gcloud 528 does not know FLEX_START and "bulk"
# yet; a later one is needed. Number in a type: cores for v5p, chips for v6e.
! $QUEUED || die "--queued needs --api=tpu; on Compute Engine --flex_start waits"
case "$TYPE" in
  v5p-*) machine=ct5p-hightpu-4t hosts=$((size / 8)) ;;
  v6e-1 | v6e-4 | v6e-8) machine="ct6e-standard-${size}t" hosts=1 ;;
  v6e-*) machine=ct6e-standard-4t hosts=$((size / 4)) ;;
  *) die "--type=$TYPE: Compute Engine has v5p and v6e; give --api=tpu" ;;
esac
# Topologies: table of https://docs.cloud.google.com/tpu/docs/v5p; those of v6e from the
# table of v5e, whose pod has the same 256 chips in two dimensions.
case "$TYPE" in
  v5p-8 | v6e-1 | v6e-4 | v6e-8) topology="" ;;
  v5p-16) topology=2x2x2 ;;
  v5p-32) topology=2x2x4 ;;
  v5p-64) topology=2x4x4 ;;
  v5p-128) topology=4x4x4 ;;
  v5p-256) topology=4x4x8 ;;
  v5p-512) topology=4x8x8 ;;
  v5p-1024) topology=8x8x8 ;;
  v5p-2048) topology=8x8x16 ;;
  v6e-16) topology=4x4 ;;
  v6e-32) topology=4x8 ;;
  v6e-64) topology=8x8 ;;
  v6e-128) topology=8x16 ;;
  v6e-256) topology=16x16 ;;
  *) die "--type=$TYPE: no slice of this size is known" ;;
esac
template=(
  "--machine-type=$machine"
  "--image-family=${VERSION:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}"
  --image-project=ubuntu-os-accelerator-images "--boot-disk-size=$DISK"
  --maintenance-policy=TERMINATE --scopes=cloud-platform "--labels=$LABEL=$NAME"
)
if $SPOT; then
  template+=(--provisioning-model=SPOT --instance-termination-action=DELETE)
elif [[ -n "$FLEX" ]]; then
  template+=(--provisioning-model=FLEX_START "--max-run-duration=$FLEX")
  template+=(--instance-termination-action=DELETE --reservation-affinity=none)
fi
group=(
  "--zone=$ZONE" "--template=$NAME-template" "--base-instance-name=$NAME"
  "--size=$hosts" --default-action-on-vm-failure=do-nothing
)
cloud compute instance-templates create "$NAME-template" "${template[@]}"
if [[ -n "$topology" ]]; then
  region="${ZONE%-*}"
  project="$PROJECT"
  if [[ -z "$project" ]]; then
    project=PROJECT
    $DRY_RUN || project="$(gcloud config get-value project 2> /dev/null)"
  fi
  cloud compute resource-policies create workload-policy "$NAME-policy" \
    "--region=$region" --type=HIGH_THROUGHPUT "--accelerator-topology=$topology"
  policy="projects/$project/regions/$region/resourcePolicies/$NAME-policy"
  group+=("--workload-policy=$policy" --target-size-policy-mode=bulk)
fi
cloud compute instance-groups managed create "$NAME" "${group[@]}"
# Ctrl-C only ends the wait.
cloud compute instance-groups managed wait-until "$NAME" "--zone=$ZONE" --stable
