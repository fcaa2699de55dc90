"""Commands that a message tells the user to type."""

import shlex
from typing import Any


def command(mode: str, **flags: Any) -> str:
    """The flags of a command as a shell takes them: paths with spaces are quoted."""
    options = [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join([f"--mode={mode}", *options])
