"""Where the processes of a run meet, before any of them starts JAX's runtime.

The runtime waits silently for a missing process and then aborts. It takes a second process with the
same id for the death of the first and ends all processes. A port that is in use kills it. So
process 0 listens at the given address and says who is missing. It refuses a process with a reason,
and once all have come it sends them the runtime's port. The connections stay open while the
processes live (training/cluster/watch.py).
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from fewstep.training.cluster.channel import Channel, Peer, process_names

T = TypeVar("T")
# Seconds.
AGAIN = 0.2  # between two attempts
HANDOVER = 5.0  # for a process of an earlier run, about to exit, to release its port and id
ANSWER = 10.0  # for process 0 to answer
QUESTION = 2.0  # for a process that connects to say who it is
STATUS = 5.0  # between two status lines from process 0 to those that wait
SILENCE = 30.0  # without a status line, after which process 0 counts as lost
NEWS = 30.0  # between two printed lines that say who is missing
START_ALL = "start the same command again in all processes; --join_timeout is how long they wait"


class Meeting(NamedTuple):
    """Where processes meet.

    hosts: names or addresses of process 0's host, to try in turn. count: processes. limit: seconds
    until all must be there. key: secret that only the processes of the run know.
    """

    hosts: Sequence[str]
    port: int
    count: int
    limit: float
    key: str = ""

    def __str__(self) -> str:
        return f"{self.hosts[0]}:{self.port}"


class Guest(NamedTuple):
    """A process that has been let in."""

    peer: Peer
    channel: Channel


class InUseError(ValueError):
    """Another process has the port or the id, perhaps not for long."""


class MissingError(RuntimeError):
    """Some processes did not come in time."""


def meet(meeting: Meeting, me: Peer, runtime: int = 0) -> tuple[int, dict[Channel, Peer]]:
    """Wait until all have come. Returns the runtime's port and the connections of this process.

    Process 0 has a connection to each other process, and each of those one to process 0. runtime:
    the port, which only process 0 needs to give. Raises ValueError if this process is not let in,
    MissingError that names the processes that did not come.
    """
    door = Door(meeting, runtime) if me.index == 0 else None
    runtime, first = attend(meeting, me)
    guests = [first] if door is None else [door.inside[i] for i in range(1, meeting.count)]
    return runtime, {guest.channel: guest.peer for guest in guests}


class Door:
    """Process 0's side of a meeting: lets each id in once, until all are inside or time is up.

    Raises ValueError if another program has the port.
    """

    def __init__(self, meeting: Meeting, runtime: int) -> None:
        self.meeting, self.runtime = meeting, runtime
        self.inside: dict[int, Guest] = {}
        self.complete, self.changing = False, threading.Lock()
        self.listening = retry_while_in_use(lambda: listen(meeting.port))
        for run in (self.serve, self.assemble):
            threading.Thread(target=run, name=f"door: {run.__name__}", daemon=True).start()

    def serve(self) -> None:
        """Answer every process that connects, also those that come too late."""
        while True:
            connection, _ = self.listening.accept()
            with suppress(OSError, ValueError, TypeError, KeyError):  # a stranger, or gone again
                self.answer(Channel(connection))

    def answer(self, channel: Channel) -> None:
        """Let a process in, or send it the reason why not. Raises ValueError for a stranger."""
        asked = channel.read_line(QUESTION)
        if asked["key"] != self.meeting.key:
            raise ValueError("a stranger")
        guest = Guest(Peer(*asked["peer"]), channel)
        with self.changing:
            refused = self.refusal(guest.peer, asked["count"])
            if not refused:
                self.inside[guest.peer.index] = guest
            # Inside the lock, so that this is the first line that a guest receives.
            channel.send(refused or {"missing": self.missing(), "waited": 0.0})
        if "refused" in refused:
            print(f"warning: {guest.peer} was refused: {refused['refused']}", file=sys.stderr)

    def refusal(self, peer: Peer, count: int) -> dict[str, Any]:
        """Why a process is not let in, or {} if it is. "in_use" and "over" may change soon."""
        if count != self.meeting.count:
            own = self.meeting.count
            return {"refused": f"--num_processes={count} in {peer}, but {own} in process 0"}
        guest = self.inside.get(peer.index)
        if guest is not None and guest.channel.is_open():
            return {"in_use": f"--process_id={peer.index} is in use by {guest.peer}"}
        return {"over": True} if self.complete else {}

    def missing(self) -> list[int]:
        """Indices of the processes that are not inside."""
        return sorted(set(range(self.meeting.count)) - self.inside.keys())

    def assemble(self) -> None:
        """Send those inside who is missing, until all are there or time is up."""
        start, told = time.monotonic(), 0.0
        while True:
            waited = time.monotonic() - start
            with self.changing:
                gone = [i for i, guest in self.inside.items() if not guest.channel.is_open()]
                for index in gone:
                    del self.inside[index]
                status: dict[str, Any] = {"missing": self.missing(), "waited": waited}
                self.complete = not status["missing"]
            if self.complete:
                status = {"runtime": self.runtime, "first": self.inside[0].peer}
            elif waited > self.meeting.limit:
                status["over"] = True
            elif waited < told + STATUS:
                time.sleep(AGAIN)
                continue
            told = waited
            # Process 0 last: once it goes on, it sends other lines over these connections.
            for _, guest in sorted(self.inside.copy().items(), reverse=True):
                guest.channel.try_to_send(status)
            if self.complete or "over" in status:
                return


def listen(port: int) -> socket.socket:
    """A listening socket. Raises InUseError if another program has the port."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise InUseError(
            f"process 0 cannot listen on port {port} of this host ({os.strerror(error.errno)}); "
            "another run or program may have it: choose another port (--coordinator, or "
            "$JAX_COORDINATOR_PORT with --distributed)"
        ) from error


def attend(meeting: Meeting, me: Peer) -> tuple[int, Guest]:
    """Go to a meeting and wait there. Returns the runtime's port, and process 0.

    Raises ValueError if process 0 refuses this one or another program answers, MissingError if
    somebody does not come.
    """
    deadline = time.monotonic() + meeting.limit
    while True:
        channel = retry_while_in_use(lambda: enter(meeting, me, deadline))
        if channel is not None:
            with suppress(ConnectionError):  # process 0 has exited; it may start again
                return wait_inside(meeting, me, channel)
        time.sleep(AGAIN)


def enter(meeting: Meeting, me: Peer, deadline: float) -> Channel | None:
    """The connection to process 0, once it lets this process in; None if the meeting is over.

    Raises ValueError with the reason if process 0 refuses, InUseError if that may change soon.
    """
    channel = connect(meeting, deadline)
    try:
        channel.send({"peer": me, "count": meeting.count, "key": meeting.key})
        answer = dict(channel.read_line(ANSWER))
        if not answer.keys() & {"refused", "in_use", "over", "missing"}:
            raise ValueError("another protocol")
    except (OSError, ValueError, TypeError) as error:
        raise InUseError(
            f"--coordinator={meeting} is answered by another program than process 0; choose a port "
            "that is free there"
        ) from error
    if "refused" in answer:
        raise ValueError(f"{answer['refused']} at {meeting}; start all with the same number")
    if "in_use" in answer:
        raise InUseError(
            f"{answer['in_use']} of the run at {meeting}; give each process an id of its own, or "
            "wait for that run to end"
        )
    return None if "over" in answer else channel


def wait_inside(meeting: Meeting, me: Peer, channel: Channel) -> tuple[int, Guest]:
    """The rest of `attend`, once this process is let in.

    Raises ConnectionError if process 0 exits, MissingError if somebody does not come.
    """
    news = NEWS
    while True:
        try:
            status = channel.read_line(SILENCE)
        except TimeoutError as error:
            raise MissingError(
                f"process 0 at {meeting} gave no sign of life for {SILENCE:g} s; {START_ALL}"
            ) from error
        if "runtime" in status:
            return status["runtime"], Guest(Peer(*status["first"]), channel)
        who = f"{process_names(status['missing'])} of {meeting.count}"
        if "over" in status:
            seconds = f"{status['waited']:.0f} s"
            raise MissingError(f"{who} did not come to {meeting} in {seconds}; {START_ALL}")
        if me.index == 0 and status["waited"] > news:
            print(f"waiting for {who} ({status['waited']:.0f} s)", file=sys.stderr, flush=True)
            news += NEWS


def connect(meeting: Meeting, deadline: float) -> Channel:
    """A connection to process 0, once it listens. Raises MissingError after the deadline."""
    news = NEWS
    while time.monotonic() < deadline:
        for host in meeting.hosts:
            with suppress(OSError):
                return Channel(socket.create_connection((host, meeting.port), ANSWER))
        waited = time.monotonic() - deadline + meeting.limit
        if waited > news:
            print(
                f"waiting for process 0 at {meeting} ({waited:.0f} s)", file=sys.stderr, flush=True
            )
            news += NEWS
        time.sleep(AGAIN)
    raise MissingError(
        f"no process 0 at {meeting} in {meeting.limit:g} s: start it there, or open the port; "
        f"{START_ALL}"
    )


def retry_while_in_use(attempt: Callable[[], T]) -> T:
    """The result of an attempt, repeated for HANDOVER seconds while it raises InUseError."""
    deadline = None
    while True:
        try:
            return attempt()
        except InUseError:
            deadline = deadline or time.monotonic() + HANDOVER
            if time.monotonic() > deadline:
                raise
        time.sleep(AGAIN)
