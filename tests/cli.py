"""The command line in a process of its own, as a user meets it, forked from one that has imported.

Importing takes seconds and a command often less: a fork server has done it once.
"""

import ctypes
import multiprocessing
import os
import re
import runpy
import socket
import sys
import threading
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import NamedTuple
from uuid import uuid4

ROOT = Path(__file__).parent.parent
MAIN = "main.py"
TIMEOUT = 300.0  # seconds
# Of Linux: a mount namespace of one's own, whose mounts no other sees; a file in another's place.
NEW_MOUNTS, PRIVATE, BIND = 0x20000, 0x44000, 0x1000
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SERVER = multiprocessing.get_context("forkserver")
# Of these, commands import late what they need: a second each time.
LATE = ["matplotlib.backends.backend_agg", "matplotlib.figure", "scipy.stats"]
LATE += ["sklearn.datasets", "sklearn.metrics", "sklearn.neighbors"]
SERVER.set_forkserver_preload(["main", "tests.lean", *LATE])


class Result(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def environment(devices=1):
    """The variables of a command on so many devices."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags}


def run(*arguments, expect=0, devices=1, nano=None, module=MAIN):
    """`python main.py ARGUMENTS` from the repository's root; nano: a Size in its place.

    module: another, as in `python -m MODULE ARGUMENTS`.
    """
    command = Command(arguments, devices, nano, module=module)
    result = command.result()
    assert command.process.exitcode == expect, result.stderr[-2000:]
    return result


class Command:
    """`python main.py ARGUMENTS`, running."""

    def __init__(self, arguments, devices=1, nano=None, before=None, module=MAIN):
        self.folder, self.arguments = TemporaryDirectory(), arguments
        self.outputs = [Path(self.folder.name, name) for name in Result._fields]
        arguments = (arguments, environment(devices), self.outputs, nano, before, module)
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


def start_together(count, *arguments, own=None, nano=None, devices=1, before=None):
    """The command in so many processes; `own`: {index: further arguments}.

    devices: of each. before: {index: what is called in that process before the command}.
    """
    address = free_address()
    return [
        Command(
            [*arguments, *joined(address, count, i), *(own or {}).get(i, [])],
            devices,
            nano,
            (before or {}).get(i),
        )
        for i in range(count)
    ]


def free_address():
    """HOST:PORT over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def joined(address, count, index):
    """The flags of one of several processes."""
    return [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"]


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


def run_together(count, *arguments, expect=0, **how):
    """`start_together` and `end_together`."""
    return end_together(start_together(count, *arguments, **how), expect)


def become_a_host():
    """Give this process a boot id of its own, by which JAX tells hosts, and so slices."""
    with NamedTemporaryFile("w") as file:
        file.write(f"{uuid4()}\n")
        file.flush()
        private_mounts()
        mount(file.name, BOOT_ID, None, BIND)


def private_mounts():
    """Let nobody else see what this process mounts from now on. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mount("none", "/", None, PRIVATE)


def mount(source, target, kind, flags, options=""):
    """mount(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*texts, ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def hosts_can_be_made():
    """Whether this user may do what `become_a_host` does."""
    process = SERVER.Process(target=become_a_host)
    process.start()
    process.join(TIMEOUT)
    return process.exitcode == 0


def end_with_parent():
    """End this process once the one that started the command has ended, however it did."""
    multiprocessing.parent_process().join()
    os._exit(1)


def call(arguments, variables, outputs, nano, before, module):
    """Become the command; runs in the forked process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()  # the fork server's are those of its first command
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    from absl import app

    import main
    from fewstep.models.dit import SIZES

    SIZES |= {"nano": nano} if nano else {}
    if before is not None:
        before()
    if module != MAIN:
        for flag in [*app.flags.FLAGS.flags_by_module_dict()["main"]]:
            delattr(app.flags.FLAGS, flag.name)  # the module may have one of that name
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    app.run(main.main, flags_parser=main.parse_flags)
