#!/usr/bin/env bash
# Train on a TPU slice by ssh, and start again if the run is stopped or the slice is lost:
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh \
#       --config=configs/cifar10.py:shortcut --workdir=/shared/runs/cifar10
#
# Every host needs this repository at FOLDER (fewstep, relative to ~) with jax[tpu] in its .venv, and
# /shared mounted, or one host a bucket (docs/clusters.md). MAX_RESTARTS (50); TUNE: env.sh.
#
# With TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite the slice is a queued resource named TPU. This
# script requests it and waits for it. It deletes the slice and creates it again if it failed or, with
# SPOT=1, was preempted. SETUP is a local script that every host of a new slice runs first (clone,
# install, mount). Exits with the code that explains the hosts' end, and leaves the slice as it is.
set -uo pipefail
here=$(dirname "$0")
# shellcheck source=launch/codes.sh
. "$here/codes.sh"
# shellcheck source=launch/tpu_slice.sh
. "$here/tpu_slice.sh"
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

codes=$(mktemp)
trap 'rm -f "$codes"' EXIT
fresh=
flags=$(printf '%q ' "$@")
# gcloud exits with the code of the first host that failed (google-cloud-sdk, tpus/tpu_vm/ssh.py),
# which may not be the cause. So each host prints its own code.
train="trap 'echo fewstep: exit code \$?' EXIT
  cd ${FOLDER:-fewstep} && . .venv/bin/activate || exit 2
  export TUNE='${TUNE:-}' && . launch/env.sh || exit
  launch/tpu_host.sh python main.py --mode=doctor --distributed $flags &&
  launch/tpu_host.sh python main.py --distributed $flags"

# shellcheck disable=SC2329  # called by attempt
# on_hosts COMMAND: run it on all hosts; returns the code that explains their end.
on_hosts() {
  local code
  : > "$codes"
  tpus tpu-vm ssh --worker=all --command="$1" |
    awk -v codes="$codes" '/^fewstep: exit code [0-9]+$/ {print $4 > codes} {print; fflush()}'
  code=${PIPESTATUS[0]}
  # ssh exits with 255 if it loses a host, gcloud itself with 1.
  if [ "$code" -eq 255 ] || { [ "$code" -eq 1 ] && slice_lost; }; then
    code=76
  fi
  # shellcheck disable=SC2046  # one word for each host
  return "$(cause $(cat "$codes") "$code")"
}

# shellcheck disable=SC2329  # called by restart
# attempt: train once, after the hosts are ready.
attempt() {
  if [ -n "${TYPE:-}" ]; then wait_for_slice || return; fi
  if [ -n "$fresh" ] && [ -n "${SETUP:-}" ]; then on_hosts "$(cat "$SETUP")" || return; fi
  fresh=
  on_hosts "$train"
}

restart 5 attempt
