#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster that XPK made (pip install xpk):
#
#   CLUSTER=my-cluster TPU_TYPE=v5litepod-16 IMAGE=... NAME=cifar10 \
#       launch/gke.sh --config=configs/cifar10.py:shortcut --workdir=/shared/runs/cifar10
#
# Build IMAGE from the Dockerfile with ACCELERATOR=tpu. /shared is a volume that all hosts can write,
# for example a bucket or Filestore attached by `xpk storage attach`. Prepared data are in
# /shared/data, unless --config.data.dir names another folder. SLICES (1): slices, joined over
# the data-centre network. RESTARTS (50): how often XPK may restart a workload. TUNE: launch/env.sh.
set -euo pipefail

: "${CLUSTER:?the name of the cluster}" "${TPU_TYPE:?such as v5litepod-16}"
: "${IMAGE:?the image to run}" "${NAME:?the name of the workload}"

flags=$(printf '%q ' "$@")
# XPK (1.13, src/xpk/core/docker_container.py) sends SIGTERM only to the shell of this command, so
# `exec` replaces that shell with task.sh, which forwards it. The first pod that fails decides for all
# (backoffLimit 0), so pods that end because of another pod's failure wait (LINGER).
command="trap 'exit 143' TERM; export TUNE='${TUNE:-}' FEWSTEP_DATA=/shared/data; . launch/env.sh || exit"
command+="; python main.py --mode=doctor --distributed $flags || exit"
command+="; LINGER=30 exec launch/task.sh python main.py --distributed $flags"
# XPK (1.13, src/xpk/commands/workload.py) restarts after 42 and 127 to 255 and after the codes named
# here. After any other code it ends the workload.
xpk workload create \
  --cluster="$CLUSTER" \
  --workload="$NAME" \
  --tpu-type="$TPU_TYPE" \
  --restart-on-exit-codes=75,76,77 \
  --termination-grace-period-seconds=120 \
  --num-slices="${SLICES:-1}" \
  --max-restarts="${RESTARTS:-50}" \
  --docker-image="$IMAGE" \
  --command="$command"
