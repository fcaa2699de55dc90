"""The command line in a process of its own, as a user meets it, forked from one that has imported.

Importing takes seconds and a command often less: a fork server has done it once.
"""

import multiprocessing
import os
import re
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


def run(*arguments, expect=0, devices=1):
    """`python main.py ARGUMENTS` from the repository's root."""
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in Result._fields]
        process = SERVER.Process(target=call, args=(arguments, environment(devices), outputs))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
        result = Result(*(path.read_text() for path in outputs))
        assert process.exitcode == expect, result.stderr[-2000:]
        return result


def call(arguments, variables, outputs):
    """Become the command; runs in the forked process."""
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = ["main.py", *arguments]
    from absl import app

    import main

    app.run(main.main, flags_parser=main.parse)
