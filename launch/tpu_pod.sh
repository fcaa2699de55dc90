#!/usr/bin/env bash
# Train on a TPU pod slice whose hosts are reached by ssh; the same command goes on where it was:
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh \
#       --config=configs/cifar10.py:shortcut --workdir=/shared/runs/cifar10
#
# Every host has this repository at FOLDER (fewstep, from the home folder) with jax[tpu] in its
# .venv, and /shared mounted, for example a bucket by gcsfuse. Ends with the exit code of the hosts.
set -euo pipefail

: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

flags=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  cd ${FOLDER:-fewstep} && . .venv/bin/activate &&
  python main.py --mode=doctor --distributed $flags &&
  python main.py --distributed $flags"
