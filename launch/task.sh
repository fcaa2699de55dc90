#!/usr/bin/env bash
# Run a command as one process of a job, and exit with its code:
#
#   CODES_IN=FOLDER LINGER=SECONDS launch/task.sh COMMAND...
#
# Forwards SIGTERM to the command. CODES_IN: folder that the launcher reads; the code goes into the
# name of an empty file, for which even a full disk has room. LINGER (0): seconds to wait if another
# process failed (76), so that the scheduler sees the code of that process first.
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
