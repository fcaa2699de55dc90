#!/usr/bin/env bash
# What an exit code means to a launcher; to be sourced. training/cluster/exits.py has the table of codes.

# Codes after which a launcher starts the same command again: RESTARTS in training/cluster/exits.py.
restarts="75 76 77 134 137 143"

# starts_again CODE: whether a launcher starts a job again that ended with this code.
starts_again() {
  [[ " $restarts " == *" $1 "* ]]
}

# cause CODE...: print the code that explains the end of a job, from the codes of its processes. A
# code that ends the job comes first: if one process has bad input (2), the others end because of it
# (76), and a restart would not help. 76 comes last.
cause() {
  local code result=0
  for code in "$@"; do
    if [ "$code" -ne 0 ] && ! starts_again "$code"; then
      result=$code
      break
    fi
    if [ "$result" -eq 0 ] || { [ "$result" -eq 76 ] && [ "$code" -ne 0 ]; }; then
      result=$code
    fi
  done
  echo "$result"
}

# restart SECONDS COMMAND...: run a command, and again, after SECONDS, while its exit code and
# MAX_RESTARTS (50) allow it. Exits with the last code.
restart() {
  local made=0 code
  while :; do
    "${@:2}" && code=0 || code=$?
    starts_again "$code" && [ "$made" -lt "${MAX_RESTARTS:-50}" ] || break
    made=$((made + 1))
    echo "exit code $code: restart $made" >&2
    sleep "$1"
  done
  [ "$code" -eq 0 ] || echo "exit code $code after $made restart(s): the job ends" >&2
  exit "$code"
}
