"""Keeps the memory of a training step for the next one, on CPUs.

XLA allocates and frees the temporary buffers of a step at each step. By default glibc returns large
buffers to the kernel, and the kernel clears every page that it hands out again: 23,000 page faults
for a step of digits, a sixth of its CPU time.
"""

import ctypes
import os
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax

# Options of glibc's mallopt, and values that keep freed memory in one heap.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
KEEP = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
USER_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; call this before JAX makes its client.

    Does nothing if an accelerator may compute, because a step has no buffers on the host then;
    without glibc; or if the environment chooses how memory is allocated.
    """
    chosen = any(name.startswith(USER_SETTINGS) for name in os.environ)
    if has_glibc() and computes_on_cpu() and not chosen:
        library = ctypes.CDLL(None)
        for option, value in KEEP:
            library.mallopt(option, value)


def computes_on_cpu() -> bool:
    """Return whether JAX has no other device; this does not initialise JAX."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    return not (entry_points(group="jax_plugins") or find_spec("libtpu"))


def has_glibc() -> bool:
    """Return whether this process runs on the GNU C library."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
