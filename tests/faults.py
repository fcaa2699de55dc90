"""Faults of one process among several: `before` of tests.cli, called in it before the command."""

import os
import resource
import signal
import threading
import time

from fewstep.training.cluster import clusters, watch, watchdog
from fewstep.training.cluster.preemption import Preemption
from tests import cli


def full_disk(size):
    """No file of this process may be larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_disk_after(path, size):
    """`full_disk` from the moment on at which something has this name."""

    def wait():
        while not os.path.lexists(path):
            time.sleep(0.02)
        full_disk(size)

    threading.Thread(target=wait, daemon=True).start()


def own_disk(folder):
    """This process sees another, empty disk where a folder is."""
    cli.private_mounts()
    cli.mount("none", str(folder), "tmpfs", 0)


def clock_ahead(seconds):
    """Python's clocks in this process are wrong by so much."""
    now = time.time
    time.time = lambda: now() + seconds


def other_code():
    """The sources of this process are others."""
    from fewstep.modes import request

    request.code_version = lambda: {"commit": "", "package": "", "sources": "0" * 12}


def short_limits(hung=3.0):
    """A process is taken for lost sooner; in all processes, since their beats follow it."""
    watch.BEAT, watch.HUNG = hung / 6.0, hung


def asked_to_stop(question):
    """SIGTERM comes to this process before it asks for the nth time whether to stop.

    It then waits until the others must have heard of it; their next step waits for this process.
    """
    requested, asked = Preemption.requested, []

    def ask(self):
        asked.append(None)
        if len(asked) == question:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2.0)
        return requested(self)

    Preemption.requested = ask


def hanging_save(save):
    """The disk never ends a save of this process."""
    import orbax.checkpoint as ocp

    watchdog.SMALLEST_SAVE = save
    ocp.CheckpointManager.wait_until_finished = lambda self: time.sleep(1000.0)


def slurm_task(index, count, port):
    """This process is a task of a Slurm job on this host."""
    os.environ |= {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }


def task_for_jax(index, count, port):
    """The same, of a cluster whose variables nobody but JAX knows."""
    slurm_task(index, count, port)
    clusters.detect = lambda: None
