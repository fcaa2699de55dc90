#!/usr/bin/env bash
# Run a command on one host of a TPU slice; launch/tpu_pod.sh does so on all of them:
#
#   launch/tpu_host.sh python main.py --distributed --config=... --workdir=...
#
# Only one process can use the TPU. So this script first ends a process that an earlier connection
# left, and reports a lock file that keeps libtpu out. It forwards SIGTERM to the command, which saves.
# It also sends SIGTERM before maintenance of this host, or if a spot slice is preempted (Compute
# Engine docs, "Query metadata server for maintenance event notices", "Create and use Spot VMs").
set -uo pipefail
# shellcheck source=launch/children.sh
. "${BASH_SOURCE[0]%/*}/children.sh"

lock=${LIBTPU_LOCK:-/tmp/libtpu_lockfile}
record=${TMPDIR:-/tmp}/fewstep-$UID.pid
metadata=http://metadata.google.internal/computeMetadata/v1/instance

# announced KEY: print a value of the host's metadata; nothing if the host has none.
announced() {
  curl -sf --max-time 2 -H 'Metadata-Flavor: Google' "$metadata/$1"
}

# watch PID: send SIGTERM to a process when Google takes the host away.
watch() {
  until [[ $(announced maintenance-event) == TERMINATE* || $(announced preempted) == TRUE ]]; do
    sleep 10 &> /dev/null # may outlive this function and must not keep the connection open
  done
  echo "Google takes this host away: telling the run to save and exit" >&2
  kill -TERM "$1"
}

left=$(cat "$record" 2> /dev/null)
if [ -n "$left" ] && grep -qa main.py "/proc/$left/cmdline" 2> /dev/null; then
  echo "process $left is left from an earlier connection: telling it to save and exit" >&2
  kill -TERM "$left"
  for ((s = 0; s < 120; s++)); do kill -0 "$left" 2> /dev/null && sleep 1; done
  kill -KILL "$left" 2> /dev/null
fi

# libtpu locks the file while it runs. The file of a killed process is harmless, unless it belongs to
# another user (openxla/xla, tpu_initialize_util.cc).
if [ -e "$lock" ] && ! { : >> "$lock"; } 2> /dev/null; then
  echo "error: $lock belongs to $(stat -c %U "$lock"), so libtpu takes the TPU to be in use. If" \
    "'sudo lsof -w /dev/accel* /dev/vfio/*' shows no process, run: sudo rm $lock" >&2
  exit 2
fi

pass_on
start "$@"
pid=${children[0]}
echo "$pid" > "$record"
watch "$pid" &
watcher=$!
await "$pid"
code=$?
kill "$watcher" 2> /dev/null
exit "$code"
