"""The devices that a run has: how many, of which kind, and the memory that it can use on each."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from fewstep.training.cost.accelerators import GIB, Target, accelerator_of

GROUPS = Path("/sys/fs/cgroup")


class Hardware(NamedTuple):
    """The devices of a run.

    kind: device_kind, or the name of a planned accelerator. accelerated: whether they are no CPUs.
    room: bytes that a program can use on each; None if unknown.
    """

    mesh: Mesh
    kind: str
    accelerated: bool
    room: float | None

    def describe(self) -> str:
        """Number, kind and memory in words, such as "1 device (cpu) of 15.5 GiB"."""
        plural = "s" if self.mesh.size > 1 else ""
        size = f" of {self.room / GIB:.1f} GiB" if self.room else ""
        return f"{self.mesh.size} device{plural} ({self.kind}){size}"


def present_hardware(mesh: Mesh) -> Hardware:
    """The devices of this process's mesh.

    Several processes must choose alike, and hosts may differ a little in memory. So they take what
    is published of their accelerator.
    """
    first = jax.local_devices()[0]
    accelerator = accelerator_of(first.device_kind)
    published = None if accelerator is None else accelerator.room
    limit = (first.memory_stats() or {}).get("bytes_limit", published)
    if first.platform == "cpu":
        # Emulated devices share the memory of the host.
        limit = host_memory() / jax.local_device_count()
    room = limit if jax.process_count() == 1 else published
    return Hardware(mesh, first.device_kind, first.platform != "cpu", room)


def planned_hardware(mesh: Mesh, target: Target | None) -> Hardware:
    """The devices of a plan; without a target, CPUs of unknown memory."""
    if target is None:
        return Hardware(mesh, "cpu", False, None)
    return Hardware(mesh, target.name, True, target.accelerator.room)


def host_memory() -> int:
    """Bytes of memory of this host, or the limit of the container or job if that is smaller."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *group_limits(Path("/proc/self/cgroup"))])


def group_limits(membership: Path, root: Path = GROUPS) -> Iterator[int]:
    """The limits in bytes of the control groups, of version 1 or 2, that hold this process."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        top, name = (root / controllers), ("memory.limit_in_bytes" if controllers else "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from limit_in(folder / name)


def limit_in(file: Path) -> Iterator[int]:
    """The number in a file; nothing if it has none, as without a limit."""
    try:
        yield int(file.read_text())
    except (OSError, ValueError):
        return
