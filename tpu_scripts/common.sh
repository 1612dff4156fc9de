# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # set here or there, used there or here
# Sourced by the scripts beside it: options, --dry_run, and running things on all hosts.
# A script sets `usage` before, then calls `parse "$@"`. For bash 3.2 too, of macOS.
set -euo pipefail

NAME="${TPU_NAME:-}"
ZONE="${TPU_ZONE:-}"
PROJECT="${TPU_PROJECT:-}"
API="${TPU_API:-}"
PARALLEL=32
ATTEMPTS=3
RETRY_WAIT="${TPU_RETRY_WAIT:-5}"
DRY_RUN=false
REST=()
HOSTS=()
# Label of the instances of a slice on Compute Engine.
LABEL=prottrans-slice
# Folder on every host: Python environment, log and process id of the training.
REMOTE_DIR=prottrans_run
# Exit status of a command on a host that must not be tried again.
REFUSED=9
# For a host's shell, in REMOTE_DIR: whether its training runs. The process id alone may
# by now be another program's.
# shellcheck disable=SC2016
alive='alive() { [ -f train.pid ] && grep -q prottrans "/proc/$(cat train.pid)/cmdline" 2> /dev/null; }'

common_usage="
  --name=NAME        name of the TPU (or TPU_NAME)
  --zone=ZONE        e.g. europe-west4-a (or TPU_ZONE)
  --project=PROJECT  Google Cloud project; gcloud's own by default (or TPU_PROJECT)
  --api=API          'compute': made through Compute Engine; 'tpu': through the older
                     Cloud TPU API (or TPU_API)"
hosts_usage="$common_usage; by default both are searched
  --parallel=N       hosts that are called at once ($PARALLEL)
  --attempts=N       calls of a host before it has failed ($ATTEMPTS)"

die() {
  echo "error: $*" >&2
  exit 2
}

# Reads the options that all scripts have. Those of one script are handled by its own
# function `option NAME VALUE`, which returns 1 for what it does not know. What follows
# -- goes into REST.
parse() {
  while (($#)); do
    case "$1" in
      --help | -h)
        echo "$usage"
        exit 0
        ;;
      --dry_run) DRY_RUN=true ;;
      --)
        shift
        REST=("$@")
        break
        ;;
      --*=*)
        case "$1" in
          --name=*) NAME="${1#*=}" ;;
          --zone=*) ZONE="${1#*=}" ;;
          --project=*) PROJECT="${1#*=}" ;;
          --api=*) API="${1#*=}" ;;
          --parallel=*) PARALLEL="$(number "$1")" ;;
          --attempts=*) ATTEMPTS="$(number "$1")" ;;
          *) option "${1%%=*}" "${1#*=}" || die "unknown option $1; see --help" ;;
        esac
        ;;
      *) option "$1" "" || die "unknown option $1; see --help" ;;
    esac
    shift
  done
  [[ -n "$NAME" ]] || die "give --name=NAME (or set TPU_NAME)"
  [[ -n "$ZONE" ]] || die "give --zone=ZONE (or set TPU_ZONE)"
  [[ "$API" =~ ^(compute|tpu|)$ ]] || die "--api=$API is neither compute nor tpu"
  $DRY_RUN || command -v gcloud > /dev/null \
    || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

# The value of an option --NAME=VALUE that is a number above 0.
number() {
  [[ "${1#*=}" =~ ^[1-9][0-9]*$ ]] || die "$1 is not a number above 0"
  echo "${1#*=}"
}

# Runs a command, or with --dry_run prints it so that it could be pasted.
run() {
  if $DRY_RUN; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# run gcloud ARGUMENTS... in the project.
cloud() {
  if [[ -n "$PROJECT" ]]; then
    run gcloud "$@" "--project=$PROJECT"
  else
    run gcloud "$@"
  fi
}

# Names the hosts of the slice in HOSTS, and sets API.
find_hosts() {
  local listed=""
  if [[ "$API" != tpu ]]; then
    if $DRY_RUN; then
      API=compute
    fi
    listed="$(cloud compute instances list "--zones=$ZONE" \
      "--filter=labels.$LABEL=$NAME" "--format=value(name)")" || [[ -z "$API" ]]
    if $DRY_RUN; then
      echo "$listed"
      listed="$NAME-HOST"
    fi
    [[ -z "$listed" ]] || API=compute
  fi
  if [[ "$API" != compute ]]; then
    listed="$(cloud compute tpus tpu-vm describe "$NAME" "--zone=$ZONE" \
      "--format=value(networkEndpoints.len())")" || listed=""
    if $DRY_RUN; then
      echo "$listed"
      listed=1
    fi
    if [[ "$listed" =~ ^[0-9]+$ ]]; then
      API=tpu
      listed="$(seq 0 $((listed - 1)))"
    fi
  fi
  [[ -n "$listed" ]] || die "no TPU $NAME in $ZONE; create.sh makes one"
  # shellcheck disable=SC2206  # names without blanks
  HOSTS=($listed)
}

# Runs the shell command REMOTE_COMMAND on a host.
over_ssh() {
  if [[ "$API" == compute ]]; then
    cloud compute ssh "$1" "--zone=$ZONE" "--command=$REMOTE_COMMAND"
  else
    cloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" "--worker=$1" \
      "--command=$REMOTE_COMMAND"
  fi
}

# Copies LOCAL_FILE into the home folder of a host.
over_scp() {
  if [[ "$API" == compute ]]; then
    cloud compute scp "$LOCAL_FILE" "$1:" "--zone=$ZONE"
  else
    cloud compute tpus tpu-vm scp "$LOCAL_FILE" "$NAME:" "--zone=$ZONE" "--worker=$1"
  fi
}

# Calls ACTION for a host, again if it fails; what it prints goes to the folder OUT.
attempt() {
  local attempt status
  for ((attempt = 1; ; attempt++)); do
    status=0
    "$ACTION" "$1" > "$OUT/$1.out" 2> "$OUT/$1.err" || status=$?
    ((status)) || return 0
    if ((status == REFUSED || attempt >= ATTEMPTS)); then
      echo "$1 (exit status $status, $attempt attempt(s))" >> "$OUT/failed"
      return 0
    fi
    echo "host $1: exit status $status, attempt $attempt of $ATTEMPTS:" \
      "$(tail -n 1 "$OUT/$1.err")" >&2
    sleep "$RETRY_WAIT"
  done
}

# Calls a function for all hosts, PARALLEL at once: on_hosts over_ssh. The first host goes
# alone, because gcloud may make an SSH key. Returns 1 if hosts failed, after naming them.
on_hosts() {
  ACTION="$1"
  if $DRY_RUN; then
    for host in "${HOSTS[@]}"; do
      "$ACTION" "$host"
    done
    return 0
  fi
  OUT="$(mktemp -d)"
  export ACTION OUT NAME ZONE PROJECT API DRY_RUN REFUSED ATTEMPTS RETRY_WAIT
  export REMOTE_COMMAND="${REMOTE_COMMAND:-}" LOCAL_FILE="${LOCAL_FILE:-}"
  export -f attempt over_ssh over_scp cloud run
  attempt "${HOSTS[0]}" < /dev/null
  if ((${#HOSTS[@]} > 1)); then
    # shellcheck disable=SC2016  # for the inner shell
    printf '%s\n' "${HOSTS[@]:1}" | xargs -P "$PARALLEL" -n 1 bash -c 'attempt "$0"'
  fi
}

# Prints what the hosts said, and which failed; returns 1 if one did. Removes OUT.
report() {
  local host failed=0
  $DRY_RUN && return 0
  for host in "${HOSTS[@]}"; do
    sed "s/^/[$host] /" "$OUT/$host.out"
    sed "s/^/[$host] /" "$OUT/$host.err" >&2
  done
  if [[ -f "$OUT/failed" ]]; then
    failed=1
    echo "error: $(wc -l < "$OUT/failed" | tr -d ' ') of ${#HOSTS[@]} host(s) failed:" \
      "$(sort -V "$OUT/failed" | paste -sd ';' - | sed 's/;/; /g')" >&2
  fi
  rm -r "$OUT"
  return "$failed"
}

# Runs a shell command on all hosts at once; fails if one fails.
on_all_hosts() {
  REMOTE_COMMAND="$1"
  on_hosts over_ssh
  report
}

# Shell commands for a host: starts what REMOTE_DIR/command says. A second call of the
# same launch, after a connection that broke, does nothing.
start_training() {
  local launch
  launch="$(date +%s)-$$"
  $DRY_RUN && launch=LAUNCH
  echo "if alive; then [ \"\$(cat launch)\" = $launch ] && exit 0; \
echo \"already training, process \$(cat train.pid); stop.sh ends it\" >&2; exit $REFUSED; fi; \
[ -f command ] || { echo 'train.sh was never called here' >&2; exit $REFUSED; }; \
echo $launch > launch; \
setsid nohup bash command >> train.log 2>&1 < /dev/null & echo \$! > train.pid"
}

# Shell commands for a host: ends its training and waits for it, $1 seconds at most.
# SIGTERM on every host: they agree on a step, save it and exit. Nothing is killed.
stop_training() {
  echo "if alive; then pid=\$(cat train.pid); kill -TERM \$pid; \
for _ in \$(seq $1); do alive || break; sleep 1; done; \
if alive; then echo \"process \$pid still runs after $1 s; see $REMOTE_DIR/train.log\" >&2; \
exit $REFUSED; fi; rm -f train.pid; tail -n 3 train.log; else echo 'not training'; fi"
}
