#!/usr/bin/env bash
# What an exit code means to a launcher; to be sourced. training/cluster/exits.py has the table of codes.

# The codes after which the same command goes on: EXITS.RESTARTS of training/cluster/exits.py.
restarts="75 76 77 134 137 143"

# starts_again CODE: whether a job that ended with this code is started again.
starts_again() {
  [[ " $restarts " == *" $1 "* ]]
}

# cause CODE...: print the code that says why a job ended whose processes ended with these. A code
# that ends the job for good goes first: if one process had bad input (2), the others end because it
# did (76), and all of them would again. 76 is the least of causes.
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

# restart SECONDS COMMAND...: run it, and again while its exit code and MAX_RESTARTS (50) say so;
# ends this shell with the last code.
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
