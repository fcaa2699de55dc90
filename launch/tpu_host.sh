#!/usr/bin/env bash
# Run a command on one host of a TPU slice; launch/tpu_pod.sh starts it on all of them:
#
#   launch/tpu_host.sh python main.py --distributed --config=... --workdir=...
#
# One process at a time has the TPU. So what an earlier connection left running is ended first, and
# a lock file that keeps libtpu out is named. SIGTERM goes on to the command, which saves; so does
# news of maintenance of this host or of a spot slice that is taken back (Compute Engine docs,
# "Query metadata server for maintenance event notices", "Create and use Spot VMs").
set -uo pipefail
# shellcheck source=launch/children.sh
. "${BASH_SOURCE[0]%/*}/children.sh"

lock=${LIBTPU_LOCK:-/tmp/libtpu_lockfile}
record=${TMPDIR:-/tmp}/fewstep-$UID.pid
metadata=http://metadata.google.internal/computeMetadata/v1/instance

# announced KEY: what the host's metadata says; nothing where there are none.
announced() {
  curl -sf --max-time 2 -H 'Metadata-Flavor: Google' "$metadata/$1"
}

# watch PID: tell a process to save and end when Google takes the host away.
watch() {
  until [[ $(announced maintenance-event) == TERMINATE* || $(announced preempted) == TRUE ]]; do
    sleep 10 &> /dev/null # may outlive this function, and must not hold the connection
  done
  echo "Google takes this host away: the run is told to save and end" >&2
  kill -TERM "$1"
}

left=$(cat "$record" 2> /dev/null)
if [ -n "$left" ] && grep -qa main.py "/proc/$left/cmdline" 2> /dev/null; then
  echo "process $left is left from an earlier connection: it is told to save and end" >&2
  kill -TERM "$left"
  for ((s = 0; s < 120; s++)); do kill -0 "$left" 2> /dev/null && sleep 1; done
  kill -KILL "$left" 2> /dev/null
fi

# libtpu locks the file while it runs; that of a process which was killed is harmless, unless it is
# another user's (openxla/xla, tpu_initialize_util.cc).
if [ -e "$lock" ] && ! { : >> "$lock"; } 2> /dev/null; then
  echo "$lock belongs to $(stat -c %U "$lock"), so libtpu finds the TPU in use. If 'sudo lsof -w" \
    "/dev/accel* /dev/vfio/*' shows no process, it is stale: sudo rm $lock" >&2
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
