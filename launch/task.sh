#!/usr/bin/env bash
# Run a command as one process of a job, and end with its exit code:
#
#   CODES_IN=FOLDER LINGER=SECONDS launch/task.sh COMMAND...
#
# SIGTERM goes on to the command. CODES_IN: folder that the launcher reads, where the code becomes
# the end of a file's name, for which a full disk still has room. LINGER (0): how long to wait when another process failed (76), so that the scheduler
# hears first from that one, which says why.
set -uo pipefail
# shellcheck source=launch/children.sh
. "${BASH_SOURCE[0]%/*}/children.sh"

pass_on
start "$@"
await "${children[0]}"
code=$?

if [ -n "${CODES_IN:-}" ]; then
  : > "$CODES_IN/${SLURM_PROCID:-$HOSTNAME-$$}.$code"
fi
if [ "$code" -eq 76 ]; then
  sleep "${LINGER:-0}"
fi
exit "$code"
