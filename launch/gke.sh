#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster that XPK made (pip install xpk):
#
#   CLUSTER=my-cluster TPU_TYPE=v5litepod-16 IMAGE=... NAME=cifar10 \
#       launch/gke.sh --config=configs/cifar10.py:shortcut --workdir=/shared/runs/cifar10
#
# IMAGE has this repository as its working folder and jax[tpu] installed. /shared is a volume that
# all hosts write, for example a bucket or Filestore attached by `xpk storage attach`. SLICES (1) are
# joined over the data-centre network; RESTARTS (50) is how often XPK starts a workload again that
# was preempted (75) or lost a process (76).
set -euo pipefail

: "${CLUSTER:?the name of the cluster}" "${TPU_TYPE:?such as v5litepod-16}"
: "${IMAGE:?the image to run}" "${NAME:?the name of the workload}"

flags=$(printf '%q ' "$@")
xpk workload create \
  --cluster="$CLUSTER" \
  --workload="$NAME" \
  --tpu-type="$TPU_TYPE" \
  --num-slices="${SLICES:-1}" \
  --max-restarts="${RESTARTS:-50}" \
  --docker-image="$IMAGE" \
  --command="python main.py --mode=doctor --distributed $flags && python main.py --distributed $flags"
