#!/usr/bin/env bash
# Train on one machine, after --mode=doctor has found no problem:
#
#   launch/local.sh --config=configs/cifar10.py:shortcut --workdir=runs/cifar10
#
# One process drives all GPUs of the machine. To test a job of several processes, NPROC=2 starts two
# that meet over loopback, each with one GPU: that of its number, or of its place in
# CUDA_VISIBLE_DEVICES. You can also set PYTHON (python), PORT (4321) and TUNE (launch/env.sh). Exits
# with the code of the training and never restarts it.
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

# The GPUs of the processes. Without any, "" or -1, all processes have none.
IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES-}"
case "${CUDA_VISIBLE_DEVICES-all}" in
  all) for ((index = 0; index < count; index++)); do gpus[index]=$index; done ;;
  "" | -1) for ((index = 0; index < count; index++)); do gpus[index]=-1; done ;;
esac
if [ "${#gpus[@]}" -lt "$count" ]; then
  echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has fewer GPUs than NPROC=$count" >&2
  exit 2
fi

# together PORT ARGUMENT...: run main.py in every process; returns the code that explains their end.
together() {
  local address=127.0.0.1:$1 codes=() code
  shift
  pass_on
  for ((index = 0; index < count; index++)); do
    CUDA_VISIBLE_DEVICES=${gpus[index]} start "$python" main.py "$@" \
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
