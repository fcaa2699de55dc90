#!/usr/bin/env bash
# Train on one machine, once --mode=doctor has found nothing in the way:
#
#   launch/local.sh --config=configs/cifar10.py:shortcut --workdir=runs/cifar10
#
# One process drives all GPUs of the machine; that is all it needs. To try what a cluster does,
# NPROC=2 starts two processes that meet over the loopback, each with the GPU of its number.
# PYTHON (python), PORT (4321) and TUNE (launch/env.sh) can be set too. Ends with the exit code of
# the training, which nothing here starts again.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/env.sh
. launch/codes.sh
. launch/children.sh

python=${PYTHON:-python}
count=${NPROC:-1}
port=${PORT:-4321}

if [ "$count" -eq 1 ]; then
  "$python" main.py --mode=doctor "$@"
  exec "$python" main.py "$@"
fi

# together PORT ARGUMENT...: main.py in every process; ends with the code that says why they ended.
together() {
  local address=127.0.0.1:$1 codes=() code
  shift
  pass_on
  for ((index = 0; index < count; index++)); do
    CUDA_VISIBLE_DEVICES=$index start "$python" main.py "$@" \
      --coordinator="$address" --num_processes="$count" --process_id="$index"
  done
  for pid in "${children[@]}"; do
    await "$pid" && code=0 || code=$?
    codes+=("$code")
  done
  return "$(cause "${codes[@]}")"
}

together "$((port + 1))" --mode=doctor "$@"
together "$port" "$@"
