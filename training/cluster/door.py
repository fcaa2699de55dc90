"""Where the processes of a run meet, before any of them starts JAX's runtime.

The runtime itself waits for a missing process without a word and then aborts, takes a second
process of one id for the death of the first, and ends all of them; of a port that is in use it
dies. So process 0 listens at the address that all were given, says who is missing, and tells all
the port of the runtime once they are there, or why one is refused. The connections stay open as
long as the processes live (training/cluster/watch.py).
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from fewstep.training.cluster.channel import Channel, Peer, listed

T = TypeVar("T")
# Seconds.
AGAIN = 0.2  # between two attempts
HANDOVER = 5.0  # in which a process of an earlier run that is about to end gives port and id back
ANSWER = 10.0  # in which process 0 says a first line
QUESTION = 2.0  # and in which whoever comes to it does
STATUS = 5.0  # between two lines of process 0 to those that wait
SILENCE = 30.0  # without one, after which process 0 is taken for lost
NEWS = 30.0  # between two lines on the screen that say who is missing
START_ALL = "start the same command again in all processes; --join_timeout is how long they wait"


class Meeting(NamedTuple):
    """Where processes meet.

    hosts: names under which process 0 may be reached. count: of processes. limit: seconds until all
    are there. key: what the processes of the run know, and no stranger.
    """

    hosts: Sequence[str]
    port: int
    count: int
    limit: float
    key: str = ""

    def __str__(self) -> str:
        return f"{self.hosts[0]}:{self.port}"


class Guest(NamedTuple):
    """A process that was let in."""

    peer: Peer
    channel: Channel


class InUseError(ValueError):
    """A port or an id that another process has, perhaps not for long."""


class MissingError(RuntimeError):
    """Processes that did not come in time."""


def meet(meeting: Meeting, me: Peer, runtime: int = 0) -> tuple[int, dict[Channel, Peer]]:
    """Wait until all are there: the port of the runtime, and the connections to the other side.

    That is process 0, or in process 0 all others. runtime: the port that process 0 tells. Raises
    ValueError if this one is not let in, MissingError that names who did not come.
    """
    door = Door(meeting, runtime) if me.index == 0 else None
    runtime, first = ask(meeting, me)
    guests = [first] if door is None else [door.inside[i] for i in range(1, meeting.count)]
    return runtime, {guest.channel: guest.peer for guest in guests}


class Door:
    """Process 0's side: lets each id in once, until all are inside or the limit is over.

    Raises ValueError if another program has the port.
    """

    def __init__(self, meeting: Meeting, runtime: int) -> None:
        self.meeting, self.runtime = meeting, runtime
        self.inside: dict[int, Guest] = {}
        self.complete, self.changing = False, threading.Lock()
        self.listening = patiently(lambda: listen(meeting.port))
        for run in (self.serve, self.assemble):
            threading.Thread(target=run, name=f"door: {run.__name__}", daemon=True).start()

    def serve(self) -> None:
        """Answer whoever comes, for ever: one that comes too late is told so."""
        while True:
            connection, _ = self.listening.accept()
            with suppress(OSError, ValueError, TypeError, KeyError):  # a stranger, or gone again
                self.answer(Channel(connection))

    def answer(self, channel: Channel) -> None:
        """Let a process in, or tell it why not. Raises ValueError for a stranger."""
        asked = channel.read_line(QUESTION)
        if asked["key"] != self.meeting.key:
            raise ValueError("a stranger")
        guest = Guest(Peer(*asked["peer"]), channel)
        with self.changing:
            refused = self.refusal(guest.peer, asked["count"])
            if not refused:
                self.inside[guest.peer.index] = guest
            # Within the lock, so that it is the first line that a guest hears.
            channel.send(refused or {"missing": self.missing(), "waited": 0.0})
        if "refused" in refused:
            print(f"warning: {guest.peer} was refused: {refused['refused']}", file=sys.stderr)

    def refusal(self, peer: Peer, count: int) -> dict[str, Any]:
        """Why a process is not let in, {} if it is; in use or over may be another answer soon."""
        if count != self.meeting.count:
            own = self.meeting.count
            return {"refused": f"--num_processes={count} in {peer}, but {own} in process 0"}
        guest = self.inside.get(peer.index)
        if guest is not None and guest.channel.is_open():
            return {"in_use": f"--process_id={peer.index} is in use by {guest.peer}"}
        return {"over": True} if self.complete else {}

    def missing(self) -> list[int]:
        """The processes that are not inside."""
        return sorted(set(range(self.meeting.count)) - self.inside.keys())

    def assemble(self) -> None:
        """Tell those inside who is missing, until all are there or the limit is over."""
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
            # Process 0 last: once it goes on, it speaks to the others of other things.
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


def ask(meeting: Meeting, me: Peer) -> tuple[int, Guest]:
    """The port of the runtime, and process 0, once all are there.

    Raises ValueError if process 0 refuses or another program answers, MissingError.
    """
    deadline = time.monotonic() + meeting.limit
    while True:
        channel = patiently(lambda: enter(meeting, me, deadline))
        if channel is not None:
            with suppress(ConnectionError):  # process 0 has ended: perhaps it is started again
                return wait_inside(meeting, me, channel)
        time.sleep(AGAIN)


def enter(meeting: Meeting, me: Peer, deadline: float) -> Channel | None:
    """The connection to process 0, if it lets this one in; None if its run has begun, or ended.

    Raises ValueError that says why it does not, InUseError if that may change soon.
    """
    channel = reach(meeting, deadline)
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
    """`ask` once this one is let in. Raises ConnectionError if process 0 ends."""
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
        who = f"{listed(status['missing'])} of {meeting.count}"
        if "over" in status:
            seconds = f"{status['waited']:.0f} s"
            raise MissingError(f"{who} did not come to {meeting} in {seconds}; {START_ALL}")
        if me.index == 0 and status["waited"] > news:
            print(f"waiting for {who} ({status['waited']:.0f} s)", file=sys.stderr, flush=True)
            news += NEWS


def reach(meeting: Meeting, deadline: float) -> Channel:
    """A connection to process 0, once it listens. Raises MissingError."""
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


def patiently(attempt: Callable[[], T]) -> T:
    """What an attempt returns; made again for a while if something is in use."""
    deadline = None
    while True:
        try:
            return attempt()
        except InUseError:
            deadline = deadline or time.monotonic() + HANDOVER
            if time.monotonic() > deadline:
                raise
        time.sleep(AGAIN)
