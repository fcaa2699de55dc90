"""Exit codes of the command line, for schedulers and scripts (docs/running.md)."""

BAD_INPUT = 2  # an error that names the field or file and the remedy
DIVERGED = 3  # not finite, or too many spikes: the run cannot go on as it is
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, and the same command goes on
PEER_DIED = 76  # another process died or failed: the same command in all of them goes on
STALLED = 77  # no step was finished for too long
INTERRUPTED = 130  # as shells report a program that SIGINT ended
