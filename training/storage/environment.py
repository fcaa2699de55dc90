"""environment.json: when, where and under which versions a run was started."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fewstep.files import write_json
from fewstep.training.cluster.processes import (
    warn,
    warn_once,
)
from fewstep.training.storage import identity
from fewstep.training.storage.code_version import code_version, describe_code
from fewstep.training.storage.fields import is_whole
from fewstep.training.storage.identity import Plain

ENVIRONMENT = "environment.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def record_environment(workdir: Path) -> None:
    """Append this start to environment.json; warn if code or packages have changed."""
    path, now = workdir / ENVIRONMENT, current_environment()
    starts = read_environments(path)
    changes = environment_changes(starts[-1], now) if starts else []
    if changes:
        warn(f"{workdir} goes on under another version: {'; '.join(changes)}")
    write_json(path, [*starts, now])


def describe_start(workdir: Path, step: int, steps: int) -> str:
    """A line that says whether a run starts or resumes, where, and on which devices.

    It names the devices of the last start if they differ. Called by process 0. step: the step that
    the run starts from.
    """
    *before, now = read_environments(workdir / ENVIRONMENT)[-2:] or [current_environment()]
    here, there = describe_hardware(now), "".join(map(describe_hardware, before))
    alike = there in (
        here,
        describe_hardware({**now, "kind": None}),
    )  # earlier versions recorded no kind
    changed = f" (before: {there})" if there and not alike else ""
    again = " again, since nothing was saved," if before else ""
    does = f"resumes {workdir} at step {step} of {steps}" if step else f"starts {workdir}{again}"
    return f"{does}{'' if step else f' for {steps} steps'} on {here}{changed}"


def describe_hardware(start: Plain) -> str:
    """Devices and processes of a start, in words; "" if it did not record them."""
    devices, processes = start.get("devices"), start.get("processes", 1)
    if not (isinstance(devices, list) and is_whole(processes)):
        return ""
    kind = f" ({start['kind']})" if isinstance(start.get("kind"), str) else ""
    return f"{count_text(len(devices), 'device')}{kind} of {count_text(processes, 'process')}"


def count_text(count: int, noun: str) -> str:
    """A count and its noun, such as "1 device" or "2 processes"."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def read_environments(path: Path) -> list[dict[str, Any]]:
    """The recorded starts of a run, the newest last; moves aside a file that cannot be read."""
    try:
        starts = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        starts = None
    starts = [starts] if isinstance(starts, dict) else starts  # as older versions wrote it
    if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
        return starts
    aside = path.with_name(f"{path.stem}.unreadable-{int(time.time())}.json")
    os.replace(path, aside)
    warn_once(f"{path} cannot be read; it is now {aside.name}, and this start begins a new one")
    return []


def environment_changes(before: Plain, now: Plain) -> list[str]:
    """How code and packages differ from those of the start before, in words."""
    old_code, code = before.get("code"), now["code"]
    changes = []
    if isinstance(old_code, Mapping) and old_code.get("sources") != code["sources"]:
        changes.append(f"{describe_code(old_code)} there, {describe_code(code)} now")
    old_packages = before.get("packages")
    if isinstance(old_packages, Mapping):
        changes += identity.differing_fields(old_packages, now["packages"])
    return changes


def current_environment() -> dict[str, Any]:
    """Time, command line, versions and devices of this start."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "code": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "kind": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
    }
