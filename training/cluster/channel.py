"""A connection that carries lines of JSON between two processes of a run."""

import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

NAMED = 8  # processes that a message names; it counts the others
LINE = 2048  # largest line while processes meet, bytes
# A host that vanishes closes no connection: TCP probes one after 10 s of silence, 4 times in 20 s.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


class Peer(NamedTuple):
    """A process of the run."""

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} (host {self.host}, pid {self.pid})"


def process_names(indices: Sequence[int]) -> str:
    """Names processes: "process 2", "processes 2, 5" or, of many, the first NAMED."""
    names = ", ".join(map(str, indices[:NAMED]))
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return f"process{'es' if len(indices) > 1 else ''} {names}{more}"


class Channel:
    """A connection and the bytes read after its last whole line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.unread, self.sending = connection, b"", threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):  # Linux has all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def fileno(self) -> int:
        """The file descriptor, for selectors."""
        return self.connection.fileno()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def send(self, content: Any) -> None:
        """Send a value as one line. Raises OSError if the other side has closed."""
        with self.sending:
            self.connection.sendall(json.dumps(content).encode() + b"\n")

    def try_to_send(self, content: Any) -> None:
        """Send a value as one line to a process that may have exited."""
        with suppress(OSError):
            self.send(content)

    def receive(self) -> list[Any] | None:
        """The values that have arrived, perhaps none yet; None if the other side has closed."""
        try:
            content = self.connection.recv(2**16)
        except OSError:  # reset, or no answer to probes
            content = b""
        *lines, self.unread = (self.unread + content).split(b"\n")
        return [json.loads(line) for line in lines] if content or lines else None

    def read_line(self, seconds: float) -> Any:
        """The next value. Raises OSError on timeout, ValueError if the line is not JSON."""
        self.connection.settimeout(seconds)
        while b"\n" not in self.unread:
            content = self.connection.recv(LINE)
            if not content:
                raise ConnectionResetError("the other side has closed")
            self.unread += content
            if len(self.unread) > LINE and b"\n" not in self.unread:
                raise ValueError("a line is too long")
        self.connection.settimeout(None)
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def is_open(self) -> bool:
        """Whether the other side has not closed the connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
