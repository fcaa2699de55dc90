"""Where processes that no cluster started ask process 0 to be let in, before they join its runtime.

The runtime itself takes a second process of one id for the death of the first, and ends all of
them; of a port that is in use it dies. So process 0 listens at the address that the user gave, and
tells each process the port of the runtime, or why it is refused. The connection stays open as long
as the process lives, and so says whether an id is free.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
AGAIN = 0.2  # seconds between two attempts
# Seconds in which a process of an earlier run, which is about to end, gives its port or id back.
HANDOVER = 5.0
ANSWER = 10.0  # seconds in which process 0 says a line
QUESTION = 2.0  # and in which whoever comes to it does
LINE = 2048  # bytes of one


class Guest(NamedTuple):
    """A process that was let in, and the connection, not blocking, that lasts as long as it."""

    name: str
    connection: socket.socket

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


class InUseError(ValueError):
    """A port or an id that another process has, perhaps not for long."""


def listen(port: int) -> socket.socket:
    """A listening socket. Raises InUseError if another program has the port."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise InUseError(
            f"--coordinator: process 0 cannot listen on port {port} of this host "
            f"({os.strerror(error.errno)}); another run or program may have it: choose another port"
        ) from error


def open_door(port: int, count: int, runtime: int) -> None:
    """Let `count` processes in, from now on: listen at a port, and tell them that of the runtime.

    Raises ValueError if another program has the port.
    """
    listening = patiently(lambda: listen(port))
    threading.Thread(target=serve, args=(listening, count, runtime), daemon=True).start()


def serve(listening: socket.socket, count: int, runtime: int) -> None:
    """Answer whoever comes, for ever."""
    inside: dict[int, Guest] = {}
    while True:
        connection, _ = listening.accept()
        with suppress(OSError, ValueError, TypeError, KeyError):  # a stranger, or gone again
            connection.settimeout(QUESTION)
            asked = read(connection)
            refused = refusal(asked, count, inside)
            if not refused:
                inside[asked["index"]] = Guest(asked["name"], connection)
            write(connection, {"runtime": runtime, **refused})
            connection.setblocking(False)


def refusal(asked: Mapping[str, Any], count: int, inside: Mapping[int, Guest]) -> dict[str, str]:
    """Why a process is not let in, {} if it is; `in_use` may be another answer soon."""
    if asked["count"] != count:
        return {"refused": f"--num_processes={asked['count']} here, but {count} in process 0"}
    guest = inside.get(asked["index"])
    if guest is not None and guest.is_alive():
        return {"in_use": f"--process_id={asked['index']} is in use by {guest.name}"}
    return {}


def ask(host: str, port: int, index: int, count: int, name: str) -> tuple[int, socket.socket]:
    """The port of the runtime, and the connection to keep open; waits until process 0 is there.

    Raises ValueError if process 0 refuses, or if another program answers.
    """

    def once() -> tuple[int, socket.socket]:
        connection = reach(host, port)
        try:
            write(connection, {"index": index, "count": count, "name": name})
            answer = read(connection)
            refused, in_use = answer.get("refused"), answer.get("in_use")
            runtime = int(answer["runtime"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InUseError(
                f"--coordinator={host}:{port} is answered by another program than process 0; "
                "choose a port that is free there"
            ) from error
        if refused:
            raise ValueError(f"{refused} at {host}:{port}; start all with the same number")
        if in_use:
            raise InUseError(
                f"{in_use} of the run at {host}:{port}; give each process an id of its own, or "
                "wait for that run to end"
            )
        return runtime, connection

    return patiently(once)


def patiently(attempt: Callable[[], T]) -> T:
    """What an attempt returns; made again for a while if something is in use."""
    deadline = time.monotonic() + HANDOVER
    while True:
        try:
            return attempt()
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(AGAIN)


def reach(host: str, port: int) -> socket.socket:
    """A connection to process 0, once it listens."""
    while True:
        with suppress(OSError):
            return socket.create_connection((host, port), ANSWER)
        time.sleep(AGAIN)


def read(connection: socket.socket) -> Any:
    """The line of JSON that the other side says. Raises ValueError for another."""
    with connection.makefile("rb") as file:
        return json.loads(file.readline(LINE))


def write(connection: socket.socket, content: Mapping[str, Any]) -> None:
    """Say a line of JSON."""
    connection.sendall(json.dumps(content).encode() + b"\n")
