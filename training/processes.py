"""The processes of one run: they join, hear of each other's end, and leave together.

`jax.distributed` connects them, and its heartbeat ends all of them some time after one has died. It
does not say soon which one: a collective whose partner is gone fails with the network's words on
CPUs, and waits on GPUs. So each process holds a connection to process 0. The operating system
closes that of a process that dies; process 0 tells the others, and each ends with one line that
names it and exits.PEER_DIED, without the runtime's barrier, which would wait for the dead one. An
error in one process ends the others likewise; one that all have is said once.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from training import door, exits

# Seconds. The runtime's heartbeat is the last resort, for a process that hangs whole.
HEARTBEAT = 100
JOIN = 300  # until all processes are there, and again until they have exchanged a first message
LEAVE = 3600  # that others wait at the end for one that still writes
CONNECT = 10  # for one attempt to reach process 0
GRACE = 2.0  # that an error waits for the same one elsewhere, or for the death that explains it
LINGER = 1.0  # that process 0, whose end the runtime's of the others follows, stays longer
# A machine that vanishes closes nothing: silence of 10 s is probed 4 times in 20 s.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
GREETING = 2048  # bytes of what a process says when it connects, at most
LEFT, FAILED, DIED = "left", "failed", "died"
AGAIN = "start the same command again in all processes, and it goes on from the newest checkpoint"


class Peer(NamedTuple):
    """A process of the run."""

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} (host {self.host}, pid {self.pid})"


class Rendezvous(NamedTuple):
    """Where processes meet, when nothing in their environment says so: process 0 listens there."""

    address: str
    count: int
    index: int


def rendezvous(coordinator: str | None, count: int | None, index: int | None) -> Rendezvous | None:
    """The flags --coordinator, --num_processes and --process_id; None if none of them was given.

    Raises ValueError for some of them alone, or values that cannot be.
    """
    values = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise ValueError(
            f"--coordinator, --num_processes and --process_id go together; {', '.join(missing)} "
            "is missing"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:4321")
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--process_id={index} must be in 0 .. {count - 1}, one of --num_processes={count}"
        )
    return Rendezvous(coordinator, count, index)


class Watch:
    """The connections of a process to the others, and what it does when one of them ends.

    Process 0 is connected to all, the others to process 0.
    """

    def __init__(self, me: Peer, connections: Mapping[socket.socket, Peer]) -> None:
        self.me, self.connections = me, dict(connections)
        self.ended: set[int] = set()
        self.failures: list[tuple[Peer, str]] = []
        self.failing = self.leaving = False
        self.received = dict.fromkeys(self.connections, b"")
        self.selector = selectors.DefaultSelector()
        for connection in self.connections:
            self.selector.register(connection, selectors.EVENT_READ)
        if self.connections:
            threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Handle what arrives, for ever."""
        while True:
            for key, _ in self.selector.select():
                self.receive(key.fileobj)

    def receive(self, connection: socket.socket) -> None:
        """Read from a connection; its end without a word is the death of the process."""
        try:
            content = connection.recv(2**16)
        except OSError:  # reset, or no answer to probes
            content = b""
        *lines, self.received[connection] = (self.received[connection] + content).split(b"\n")
        for line in lines:
            peer, event, text = json.loads(line)
            self.hear(Peer(*peer), event, text)
        if not content:
            self.selector.unregister(connection)
            peer = self.connections[connection]
            if not self.leaving and peer.index not in self.ended:
                self.hear(peer, DIED, "")

    def hear(self, peer: Peer, event: str, text: str) -> None:
        """Act on the end of a process; process 0 tells the others first."""
        self.ended.add(peer.index)
        if self.leaving or event == LEFT:
            return
        if self.me.index == 0:
            self.tell(peer, event, text)
        if event == DIED:
            self.stop(f"{peer} died; {AGAIN}")
        self.failures.append((peer, text))
        if not self.failing:
            threading.Timer(GRACE, self.follow).start()

    def follow(self) -> None:
        """End because another process failed, unless this one has failed in the meantime."""
        if not self.failing:
            peer, text = self.failures[0]
            last_line = text.strip().splitlines()[-1].removeprefix("error: ")
            self.stop(f"{peer} ended with an error: {last_line}")

    def tell(self, peer: Peer, event: str, text: str) -> None:
        """Say what became of a process: to process 0, or from there to all but itself."""
        line = json.dumps([peer, event, text]).encode() + b"\n"
        for connection, other in self.connections.items():
            if other.index != peer.index:
                with suppress(OSError):  # it has ended too
                    connection.sendall(line)

    def stop(self, line: str, code: int = exits.PEER_DIED) -> None:
        """Say one line, wait where others must go first, and end this process here and now."""
        if line:
            tqdm.write(line, file=sys.stderr)
        if self.me.index == 0:
            time.sleep(LINGER)
        end(code)

    def fail(self, code: int, text: str) -> None:
        """End this process by its own error, or by that of another which explains it."""
        if self.failures and text not in (said for _, said in self.failures):
            self.follow()
        self.failing = True
        self.tell(self.me, FAILED, text)
        if self.connections:
            time.sleep(GRACE)  # `listen` ends this process if another has died
        lower = [said for peer, said in self.failures if peer.index < self.me.index]
        self.stop("" if text in lower else text, code)

    def leave(self) -> None:
        """Wait for the others to come to their end too."""
        jax.distributed.shutdown()
        self.leaving = True
        self.tell(self.me, LEFT, "")


_watch: Watch | None = None
_ticket: socket.socket | None = None  # the connection to process 0's door, open until the end


def join(where: Rendezvous | None) -> None:
    """Become one of several processes: those of `where`, or of a job that JAX detects.

    Before any other use of JAX. Raises ValueError if there is no such job.
    """
    global _watch
    connect_runtime(where)
    with within(JOIN, "the processes do not reach each other: open the network between the hosts"):
        _watch = watch(where.address.rpartition(":")[0].strip("[]") if where else None)


@contextmanager
def together() -> Iterator[None]:
    """The processes that joined leave at the end of the block; none is left waiting for another.

    An error that the block does not handle ends all of them. Does nothing for a single process.
    """
    try:
        yield
    except SystemExit:
        leave()
        raise
    except BaseException:
        if _watch is None:
            raise
        fail(1, traceback.format_exc())
    leave()


def leave() -> None:
    """Wait for all processes to come to their end, and part from them."""
    if _watch is not None:
        _watch.leave()


def connect_runtime(where: Rendezvous | None) -> None:
    """jax.distributed.initialize. Raises ValueError if there is nothing to join."""
    limits = {
        "initialization_timeout": JOIN,
        "heartbeat_timeout_seconds": HEARTBEAT,
        "shutdown_timeout_seconds": LEAVE,
    }
    if where is not None:
        # All is said: the environment of a cluster, if there is one, is not asked.
        admitted = admit(where)
        jax.distributed.initialize(*admitted, cluster_detection_method="deactivate", **limits)
        return
    try:
        jax.distributed.initialize(**limits)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no job of Slurm, Open MPI, Kubernetes or Cloud TPU to join "
            f"({error}); give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def admit(where: Rendezvous) -> Rendezvous:
    """Where the runtime's processes meet, if process 0 lets this one in (training/door.py).

    Raises ValueError that says why it does not.
    """
    global _ticket
    host, _, port = where.address.rpartition(":")
    if where.index == 0:
        with socket.create_server(("", 0)) as free:
            runtime = free.getsockname()[1]
        door.open_door(int(port), where.count, runtime)
    me = Peer(where.index, socket.gethostname(), os.getpid())
    with within(JOIN, f"no process 0 at {where.address}: start it there, or open the port"):
        runtime, _ticket = door.ask(host.strip("[]"), int(port), me.index, where.count, str(me))
    return where._replace(address=f"{host}:{runtime}")


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, in process 0 alone."""
    if is_first():
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning above the progress bar, in process 0 alone."""
    if is_first():
        tqdm.write(f"warning: {line}", file=sys.stderr)


def several() -> bool:
    """Whether this is one of several processes. Starts no devices, unlike jax.process_count."""
    return _watch is not None


def is_first() -> bool:
    """Whether this is process 0. Starts no devices, unlike jax.process_index."""
    return _watch is None or _watch.me.index == 0


@cache
def warn_once(text: str) -> None:
    """Print a warning on standard error, in process 0 alone, the first time that it is given."""
    warn(text)


def fail(code: int, text: str) -> None:
    """Say an error and end this process; as one of several, so that the others end too."""
    if _watch is not None:
        _watch.fail(code, text)
    print(text, file=sys.stderr)
    sys.exit(code)


def end(code: int) -> None:
    """End here and now: what waits for the other processes at an ordinary exit is left out."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed on the other side
            stream.flush()
    os._exit(code)


@contextmanager
def within(seconds: float, otherwise: str) -> Iterator[None]:
    """End the process with a message if the block, which waits for others, takes too long."""

    def give_up() -> None:
        print(f"error: after {seconds:g} s {otherwise}", file=sys.stderr)
        end(exits.PEER_DIED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watch(host: str | None) -> Watch:
    """Connect to process 0, at `host` if that is known; called in all processes at once."""
    me = Peer(jax.process_index(), socket.gethostname(), os.getpid())
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    listening = socket.create_server(
        ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
    )
    with listening:
        # Sent by the runtime, so that whoever knows the token belongs to the run.
        port, token = listening.getsockname()[1], secrets.token_hex()
        invitation = [me, [host] if host else own_addresses(), port, token]
        first, hosts, port, token = broadcast(invitation)
        if jax.process_count() == 1:
            return Watch(me, {})
        if me.index == 0:
            return Watch(me, accept(listening, token))
    return Watch(me, connect(Peer(*first), hosts, port, [token, me]))


def broadcast(content: Any) -> Any:
    """The plain JSON value that process 0 has, in all processes; theirs is ignored."""
    encoded = json.dumps(content).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    array = np.frombuffer(encoded.ljust(size)[:size], np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(array)))


def gather(content: Any) -> list[Any]:
    """The plain JSON value of each process, in their order, in all processes."""
    encoded = json.dumps(content).encode()
    size = int(multihost_utils.process_allgather(np.int32(len(encoded))).max())
    array = np.frombuffer(encoded.ljust(size), np.uint8)
    rows = multihost_utils.process_allgather(array).reshape(jax.process_count(), size)
    return [json.loads(bytes(row)) for row in rows]


def own_addresses() -> list[str]:
    """Names and numbers under which other hosts may reach this one, the likeliest first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # of no host; sends nothing, chooses an interface
        return [probe.getsockname()[0], socket.gethostname()]
    return [socket.gethostname()]


def accept(listening: socket.socket, token: str) -> dict[socket.socket, Peer]:
    """The connections of all others; one that does not come in time goes without."""
    found: dict[socket.socket, Peer] = {}
    deadline = time.monotonic() + 3 * CONNECT
    while len(found) < jax.process_count() - 1 and time.monotonic() < deadline:
        listening.settimeout(max(deadline - time.monotonic(), 0.1))
        with suppress(OSError, ValueError, TypeError):  # too late, or a stranger
            connection, _ = listening.accept()
            connection.settimeout(CONNECT)
            with connection.makefile("rb") as file:
                said, peer = json.loads(file.readline(GREETING))
            if secrets.compare_digest(said, token):
                found[kept_alive(connection)] = Peer(*peer)
    present = {peer.index for peer in found.values()} | {0}
    warn_without(sorted(set(range(jax.process_count())) - present))
    return found


def connect(
    first: Peer, hosts: Sequence[str], port: int, greeting: list
) -> dict[socket.socket, Peer]:
    """The connection to process 0, or none if it cannot be reached."""
    for host in hosts:
        with suppress(OSError):
            connection = socket.create_connection((host, port), CONNECT)
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            return {kept_alive(connection): first}
    return {}


def kept_alive(connection: socket.socket) -> socket.socket:
    """The connection, which probes a silent other side and waits for it without a limit."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def warn_without(indices: Sequence[int]) -> None:
    """Say which processes cannot be watched."""
    if indices:
        print(
            f"warning: no connection from process {', '.join(map(str, indices))} to process 0 "
            f"(a firewall?): if one dies, the others end after {HEARTBEAT} s only",
            file=sys.stderr,
        )
