#!/usr/bin/env bash
# Processes beside a shell, which are told to end when it is; to be sourced.

# pass_on: from now on SIGTERM and SIGINT of this shell go to what `start` starts.
pass_on() {
  children=() signalled=
  trap 'signalled=1; kill -TERM "${children[@]}" 2> /dev/null' TERM INT
}

# start COMMAND...: run it beside this shell; its process id is the last of `children`.
start() {
  "$@" &
  children+=($!)
  [ -z "$signalled" ] || kill -TERM $!
}

# await PID: wait for a process, also through signals that are passed on; ends with its code.
await() {
  local code
  while :; do
    signalled=
    wait "$1" && code=0 || code=$?
    # A signal breaks `wait` off; bash keeps the code of the process for the next one.
    [ -n "$signalled" ] || return "$code"
  done
}
