"""The command line in a process of its own, as a user meets it, forked from one that has imported.

Importing takes seconds and a command often less: a fork server has done it once.
"""

import multiprocessing
import os
import re
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TIMEOUT = 300.0  # seconds
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main"])


class Result(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def environment(devices=1):
    """The variables of a command on so many devices."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags}


def run(*arguments, expect=0, devices=1, nano=None):
    """`python main.py ARGUMENTS` from the repository's root; nano: a Size in its place."""
    command = Command(arguments, devices, nano)
    result = command.result()
    assert command.process.exitcode == expect, result.stderr[-2000:]
    return result


class Command:
    """`python main.py ARGUMENTS`, running."""

    def __init__(self, arguments, devices=1, nano=None):
        self.folder = TemporaryDirectory()
        self.outputs = [Path(self.folder.name, name) for name in Result._fields]
        arguments = (arguments, environment(devices), self.outputs, nano)
        self.process = SERVER.Process(target=call, args=arguments)
        self.process.start()

    def result(self):
        """What it printed, once it has ended."""
        self.process.join(TIMEOUT)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        with self.folder:
            return Result(*(path.read_text() for path in self.outputs))


def start_together(count, *arguments, own=None, nano=None):
    """The command in so many processes, of one device each; `own`: {index: further arguments}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = [f"--coordinator={address}", f"--num_processes={count}"]
    return [
        Command([*arguments, *joined, f"--process_id={i}", *(own or {}).get(i, [])], nano=nano)
        for i in range(count)
    ]


def end_together(commands, expect=0):
    """What they printed, once all have ended; `expect`: exit code of all, or of each."""
    results = [command.result() for command in commands]
    codes = [command.process.exitcode for command in commands]
    expected = [expect] * len(commands) if isinstance(expect, int) else expect
    assert codes == expected, "\n".join(result.stderr[-2000:] for result in results)
    # What the runtime's collectives say of themselves is not ours.
    return [
        result._replace(stdout=re.sub(r"\[Gloo\].*\n", "", result.stdout)) for result in results
    ]


def run_together(count, *arguments, expect=0, own=None, nano=None):
    """`start_together` and `end_together`."""
    return end_together(start_together(count, *arguments, own=own, nano=nano), expect)


def call(arguments, variables, outputs, nano):
    """Become the command; runs in the forked process."""
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()  # the fork server's are those of its first command
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = ["main.py", *arguments]
    from absl import app

    import main
    from models.dit import SIZES

    SIZES |= {"nano": nano} if nano else {}
    app.run(main.main, flags_parser=main.parse)
