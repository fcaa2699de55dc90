"""How a process joins a run: the processes meet, watch each other, and start JAX's runtime."""

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
from fewstep.training.cluster.processes import broadcast, time_limit
from fewstep.training.cluster.watch import HUNG, Watch

# Seconds.
JOIN = 300.0  # until all processes must be there, by default
START = 300  # to start the runtime once all have met, and to exchange a message
CONNECT = 30.0  # to reach process 0 once the runtime has started
# Timeout of the runtime's own heartbeat, the last resort. Ours is shorter and says who died.
HEARTBEAT = int(6 * HUNG)
LEAVE = 3600  # that processes wait at the end for one that still writes
LATER = 60  # added to the runtime's timeouts, so that ours, which explain themselves, come first
UNREACHED = "the processes do not reach each other: open the network between the hosts"


def join(where: Rendezvous | None, limit: float = JOIN) -> None:
    """Become one of several processes, which meet at `where` or belong to a detected job.

    Call it before any other use of JAX. limit: seconds to wait for the others. Raises ValueError if
    there is no such job or it refuses this process, door.MissingError if others do not come.
    """
    if not 0.0 < limit < math.inf:
        raise ValueError(f"--join_timeout={limit:g} must be a number of seconds above 0")
    found = where or clusters.detect()
    if found is None:
        join_by_runtime(limit)
    else:
        join_at(found, limit, given=where is not None)


def join_at(where: Rendezvous, limit: float, given: bool) -> None:
    """Meet at an address, begin to watch each other, and start the runtime.

    given: whether the user gave the address; JAX then detects no cluster.
    """
    me = Peer(where.index, socket.gethostname(), os.getpid())
    host, port = clusters.split_address(where.address)
    with socket.create_server(("", 0)) as free:
        runtime = free.getsockname()[1]
    runtime, channels = door.meet(Meeting([host], port, where.count, limit), me, runtime)
    processes.register_watch(Watch(me, channels))
    address = where.address.rpartition(":")[0]
    with time_limit(
        START, "the processes do not reach each other: open the network between the hosts"
    ):
        initialize(
            coordinator_address=f"{address}:{runtime}",
            num_processes=where.count,
            process_id=where.index,
            coordinator_bind_address=f"[::]:{runtime}",
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=START + LATER,
        )


def join_by_runtime(limit: float) -> None:
    """Start the runtime of a job that only JAX can detect, then connect to watch each other.

    Raises ValueError if JAX finds no job.
    """
    try:
        with report_waiting(limit):
            initialize(initialization_timeout=int(limit) + LATER)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no job of Slurm, Open MPI, Kubernetes or Cloud TPU to join "
            f"({error}); give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    me = Peer(jax.process_index(), socket.gethostname(), os.getpid())
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    with time_limit(
        START, "the processes do not reach each other: open the network between the hosts"
    ):
        hosts, port, key = broadcast([own_addresses(), port, secrets.token_hex()])
    meeting = Meeting(hosts, port, jax.process_count(), CONNECT, key)
    processes.register_watch(Watch(me, door.meet(meeting, me)[1]))


def initialize(**how: object) -> None:
    """Call jax.distributed.initialize with our timeouts."""
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=LEAVE, **how
    )


@contextmanager
def report_waiting(limit: float) -> Iterator[None]:
    """Print now and then that the block waits for others; end the process after the limit."""
    ended = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not ended.wait(door.NEWS):
            waited = time.monotonic() - start
            print(f"waiting for other processes ({waited:.0f} s)", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        with time_limit(limit, f"not all processes have come; {door.START_ALL}"):
            yield
    finally:
        ended.set()


def own_addresses() -> list[str]:
    """Addresses and names by which other hosts may reach this one, the likeliest first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only makes the system pick an interface
        return [probe.getsockname()[0], socket.gethostname()]
    return [socket.gethostname()]
