#!/usr/bin/env bash
# A TPU slice of Google Cloud as a queued resource; sourced by launch/tpu_pod.sh, which sets TPU and
# ZONE. States: Cloud TPU docs, "Manage queued resources". A preempted spot slice cannot be restarted,
# only created again: Cloud TPU docs, "Manage TPU Spot VMs".

# tpus GROUP COMMAND FLAG...: run gcloud on this slice.
tpus() {
  gcloud compute tpus "$1" "$2" "$TPU" --zone="$ZONE" "${@:3}"
}

# make_slice: request a slice of TYPE with the image VERSION, a spot slice if SPOT is set. Sets
# `fresh`, because its hosts are not set up.
make_slice() {
  # shellcheck disable=SC2034  # for tpu_pod.sh
  fresh=1
  tpus queued-resources create --node-id="$TPU" --accelerator-type="$TYPE" \
    --runtime-version="${VERSION:?the image of the TPU VMs, such as v2-alpha-tpuv5-lite}" \
    ${SPOT:+--spot}
}

# wait_for_slice: wait until the slice is active. Creates it if there is none, and once more if it
# failed or was preempted. Returns 76 if it fails again, and gcloud's code if gcloud fails.
wait_for_slice() {
  local state deleted=
  while :; do
    state=$(tpus queued-resources describe --format='value(state.state)' 2> /dev/null)
    echo "$TPU is ${state:-not there}" >&2
    case $state in
      ACTIVE) return ;;
      "") make_slice || return ;;
      SUSPENDED | FAILED)
        [ -z "$deleted" ] || return 76
        deleted=1
        tpus queued-resources delete --force --quiet || return
        continue
        ;;
    esac
    sleep 30
  done
}

# slice_lost: whether the slice is under maintenance, restarts, or is gone and can be created again.
slice_lost() {
  local state
  state=$(tpus tpu-vm describe --format='value(state,health)' 2> /dev/null)
  echo "$TPU is ${state:-not there}" >&2
  case $state in
    *UNHEALTHY_MAINTENANCE* | RESTARTING* | REPAIRING* | STARTING*) return 0 ;;
    READY*) return 1 ;;
    *) [ -n "${TYPE:-}" ] ;;
  esac
}
