#!/usr/bin/env bash
# Train in the pods of a Kubernetes job, one for each node with GPUs:
#
#   NAME=cifar10 IMAGE=... COUNT=2 GPUS=8 CLAIM=... \
#       launch/kubernetes.sh --config=configs/cifar10.py:shortcut --workdir=/shared/runs/cifar10
#
# Build IMAGE from the Dockerfile with ACCELERATOR=cuda13. CLAIM is a volume that all pods can write,
# mounted at /shared; prepared data are in /shared/data. Fills in and applies launch/kubernetes.yaml, which has the pods' commands. A
# job that has ended keeps its name: run `kubectl delete job,service NAME` before you start it again.
set -euo pipefail

: "${NAME:?the name of the job}" "${IMAGE:?the image to run}" "${COUNT:?the number of pods}"
: "${GPUS:?GPUs of a pod}" "${CLAIM:?the volume claim}"

FLAGS=$(printf '%q ' "$@")
export NAME IMAGE COUNT GPUS CLAIM FLAGS TUNE="${TUNE:-}"
# shellcheck disable=SC2016  # the names, for envsubst (of gettext)
envsubst '$NAME $IMAGE $COUNT $GPUS $CLAIM $FLAGS $TUNE' < "$(dirname "$0")/kubernetes.yaml" |
  kubectl apply -f -
