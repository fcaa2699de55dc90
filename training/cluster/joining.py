"""Becoming one of the processes of a run: they meet, watch each other, and start JAX's runtime."""

import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax

from fewstep.training.cluster import clusters, door, processes
from fewstep.training.cluster.channel import Peer
from fewstep.training.cluster.clusters import Rendezvous
from fewstep.training.cluster.door import Meeting
from fewstep.training.cluster.processes import broadcast, within
from fewstep.training.cluster.watch import HUNG, Watch

JOIN = 300.0  # seconds until all processes are there, unless told otherwise
START = 300  # seconds in which those that are there start the runtime, and exchange a message
CONNECT = 30.0  # seconds to reach process 0 once the runtime has started
# Seconds of the runtime's own heartbeat, the last resort; above ours, which say who is lost.
HEARTBEAT = int(6 * HUNG)
LEAVE = 3600  # seconds that others wait at the end for one that still writes
LATER = 60  # seconds by which the runtime, which aborts, is more patient than we are


def join(where: Rendezvous | None, limit: float = JOIN) -> None:
    """Become one of several processes: those of `where`, or of a job that is detected.

    Before any other use of JAX. limit: seconds to wait for the others. Raises ValueError if there
    is no such job or it does not let this one in, door.MissingError if others do not come.
    """
    if not 0.0 < limit < math.inf:
        raise ValueError(f"--join_timeout={limit:g} must be a number of seconds above 0")
    found = where or clusters.detected()
    if found is None:
        join_by_runtime(limit)
    else:
        join_at(found, limit, given=where is not None)


def join_at(where: Rendezvous, limit: float, given: bool) -> None:
    """Meet at an address; the runtime starts when all are there, and deaths are noticed then on.

    given: by the user, so that the environment of a cluster, if there is one, is not asked.
    """
    me = Peer(where.index, socket.gethostname(), os.getpid())
    host, port = clusters.split(where.address)
    with socket.create_server(("", 0)) as free:
        runtime = free.getsockname()[1]
    runtime, channels = door.meet(Meeting([host], port, where.count, limit), me, runtime)
    processes.enter(Watch(me, channels))
    address = where.address.rpartition(":")[0]
    with within(START, "the processes do not reach each other: open the network between the hosts"):
        initialize(
            coordinator_address=f"{address}:{runtime}",
            num_processes=where.count,
            process_id=where.index,
            coordinator_bind_address=f"[::]:{runtime}",
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=START + LATER,
        )


def join_by_runtime(limit: float) -> None:
    """Meet in JAX's runtime, which alone knows the job; then connect, to notice deaths.

    Raises ValueError if JAX finds no job.
    """
    try:
        with waiting(limit):
            initialize(initialization_timeout=int(limit) + LATER)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no job of Slurm, Open MPI, Kubernetes or Cloud TPU to join "
            f"({error}); give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    me = Peer(jax.process_index(), socket.gethostname(), os.getpid())
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    with within(START, "the processes do not reach each other: open the network between the hosts"):
        hosts, port, key = broadcast([own_addresses(), port, secrets.token_hex()])
    meeting = Meeting(hosts, port, jax.process_count(), CONNECT, key)
    processes.enter(Watch(me, door.meet(meeting, me)[1]))


def initialize(**how: object) -> None:
    """jax.distributed.initialize with our limits."""
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=LEAVE, **how
    )


@contextmanager
def waiting(limit: float) -> Iterator[None]:
    """Say now and then that the block waits for others, and end the process after the limit."""
    ended = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not ended.wait(door.NEWS):
            waited = time.monotonic() - start
            print(f"waiting for other processes ({waited:.0f} s)", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        with within(limit, f"not all processes have come; {door.START_ALL}"):
            yield
    finally:
        ended.set()


def own_addresses() -> list[str]:
    """Names and numbers under which other hosts may reach this one, the likeliest first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # of no host; sends nothing, chooses an interface
        return [probe.getsockname()[0], socket.gethostname()]
    return [socket.gethostname()]
