#!/usr/bin/env bash
# Child processes that get the signals of this shell; to be sourced.

# pass_on: from now on forward SIGTERM and SIGINT to the processes that `start` starts.
pass_on() {
  children=() signalled=
  trap 'signalled=1; kill -TERM "${children[@]}" 2> /dev/null' TERM INT
}

# start COMMAND...: run it in the background; its process id becomes the last of `children`.
start() {
  "$@" &
  children+=($!)
  [ -z "$signalled" ] || kill -TERM $!
}

# await PID: wait for a process, also if a signal is forwarded meanwhile; returns its exit code.
await() {
  local code
  while :; do
    signalled=
    wait "$1" && code=0 || code=$?
    # A signal interrupts `wait`; bash keeps the exit code for the next `wait`.
    [ -n "$signalled" ] || return "$code"
  done
}
