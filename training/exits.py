"""Exit codes of the command line, for schedulers and scripts (docs/clusters.md)."""

BAD_INPUT = 2  # an error that names the field or file and the remedy
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, and the same command goes on
PEER_DIED = 76  # another process died or failed: the same command in all of them goes on
INTERRUPTED = 130  # as shells report a program that SIGINT ended
