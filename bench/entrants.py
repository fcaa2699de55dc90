"""Who races, and the processes in which they work."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import OURS, PEERS, Peer
from fewstep.files import in_words
from fewstep.messages import unknown_choice

ROOT = Path(__file__).parent.parent
# Compilers in the peer's own process, so that its CPU seconds have them.
SETTINGS = {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class PeerError(Exception):
    """A peer's process failed; the message says which, and its last words."""


class Entrant(NamedTuple):
    """A peer and the Python that runs it. name: of PEERS, and where it is if it is not here."""

    name: str
    peer: Peer
    python: str


class Racer:
    """The process of an entrant, which carries out orders (bench/racer.py).

    variables: of its environment. log: the file to which what it prints is appended.
    """

    def __init__(self, entrant: Entrant, variables: Mapping[str, str], log: Path):
        self.entrant, self.log = entrant, log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [entrant.python, "-m", entrant.peer.module],
                cwd=ROOT,
                env={**os.environ, **SETTINGS, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, order: str, work: str, **fields: Any) -> Mapping[str, Any]:
        """The reply to an order. Raises PeerError if the process fails."""
        try:
            self.process.stdin.write(json.dumps({"order": order, "work": work, **fields}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": "its process ended"}
        if "error" in reply:
            raise PeerError(f"{self.entrant.name}: {reply['error']} ({self.log} has all it said)")
        return reply

    def __enter__(self) -> "Racer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def find_entrant(text: str) -> Entrant:
    """The entrant of NAME or NAME:PYTHON. Raises ValueError if it cannot take part."""
    name, _, python = text.partition(":")
    if name not in PEERS:
        raise ValueError(unknown_choice("--peer", name, PEERS))
    peer = PEERS[name]
    if not python and name != OURS and importlib.util.find_spec(peer.package) is None:
        raise ValueError(
            f"--peer={name}: {peer.package} is not installed here; name a Python that has it, "
            f"--peer={name}:/path/to/python"
        )
    if python:
        check_import(python, peer.package)
    own = name != OURS
    return Entrant(name if own else f"{name}:{python or 'again'}", peer, python or sys.executable)


def check_import(python: str, package: str) -> None:
    """Raises ValueError if an interpreter cannot run or lacks a package."""
    find = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    try:
        code = subprocess.run([python, "-c", find]).returncode
    except OSError as error:
        raise ValueError(f"--peer: cannot run {python}: {in_words(error)}") from None
    if code:
        raise ValueError(f"--peer: {python} cannot import {package}; install it there")
