#!/usr/bin/env bash
# Train on one machine, once --mode=doctor has found nothing in the way:
#
#   launch/local.sh --config=configs/cifar10.py:shortcut --workdir=runs/cifar10
#
# One process drives all GPUs of the machine; that is all it needs. To try what a cluster does,
# NPROC=2 starts two processes that meet over the loopback, each with the GPU of its number.
# PYTHON (python) and PORT (4321) can be set too. Ends with the exit code of the training.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
count=${NPROC:-1}
port=${PORT:-4321}

if [ "$count" -eq 1 ]; then
  "$python" main.py --mode=doctor "$@"
  exec "$python" main.py "$@"
fi

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM

# together PORT ARGUMENT...: main.py in every process. If one failed, the others end with 76 (a
# process died); then the code of the one that failed is what says why.
together() {
  local address=127.0.0.1:$1 result=0 code
  shift
  pids=()
  for ((index = 0; index < count; index++)); do
    CUDA_VISIBLE_DEVICES=$index "$python" main.py "$@" \
      --coordinator="$address" --num_processes="$count" --process_id="$index" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    if [ "$result" -eq 0 ] || { [ "$result" -eq 76 ] && [ "$code" -ne 0 ]; }; then
      result=$code
    fi
  done
  return "$result"
}

together "$((port + 1))" --mode=doctor "$@"
together "$port" "$@"
