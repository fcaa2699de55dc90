"""The environment of every test process, set before JAX starts; nothing of the caller's counts.

Eight CPU devices, compiled fast and once. Tests compile more than they compute: little
optimisation, and what one process of this session compiled the others find, those of the command
line included.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import date
from zlib import crc32

import pytest

# What the operating system, Python and pytest need. Everything else that a shell may export, such
# as the variables of Makefile, launch/, JAX and clusters, stays outside.
KEPT = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "LD_LIBRARY_PATH"}
KEPT |= {"PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}
KEPT_PREFIXES = ("PYTEST_", "COV_CORE_", "COVERAGE_")
# The older code generator for fusions compiles a training step in half to two thirds of the time.
# It is an extra option since, unlike a flag, XLA ignores one that it does not know.
OLDER_FUSIONS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 " + OLDER_FUSIONS
)
# The folder of this session, which its processes pass on to those that they start.
SESSION = "FEWSTEP_TEST_SESSION"


def kept(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the caller that tests keep."""
    return {
        name: value
        for name, value in variables.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }


def own(folder: str) -> dict[str, str]:
    """The variables that tests set; what is prepared or trained on the data lies in the folder."""
    return {
        SESSION: folder,
        "JAX_PLATFORMS": "cpu",
        "JAX_SOFTMAX_CUSTOM_JVP": "true",  # as in main.py
        "XLA_FLAGS": FLAGS,
        "PYTEST_ROTATION": os.environ.get("PYTEST_ROTATION") or str(date.today().toordinal()),
        "FEWSTEP_DATA": f"{folder}/data",
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


if SESSION not in os.environ:
    folder = tempfile.mkdtemp(prefix="fewstep-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    variables = {**kept(os.environ), **own(folder)}
    os.environ.clear()
    os.environ.update(variables)


def pytest_report_header() -> str:
    """What chose among methods (tests/training/kinds.py), to run the same again."""
    return f"PYTEST_ROTATION={os.environ['PYTEST_ROTATION']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what `in_turn` and `some_days` leave to other days."""
    chosen = set(map(id, choose(items, os.environ["PYTEST_ROTATION"])))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def choose(items: list[pytest.Item], rotation: str) -> list[pytest.Item]:
    """The items without those that have no turn (markers `in_turn` and `some_days`).

    A hash of its name gives a test of `some_days` its day, whatever else is collected.
    rotation: a number whose remainders choose, or "all" for every item.
    """
    if rotation == "all":
        return items
    number, seen, chosen = int(rotation), {}, []
    for item in items:
        place, parts = 0, 1
        if mark := item.get_closest_marker("in_turn"):
            name, parts = mark.args
            values = seen.setdefault((item.path, item.function), {})
            place = values.setdefault(repr(item.callspec.params[name]), len(values))
        elif mark := item.get_closest_marker("some_days"):
            place, (parts,) = crc32(item.nodeid.encode()), mark.args
        if place % parts == number % parts:
            chosen.append(item)
    return chosen


def pytest_collection_finish() -> None:
    """Run what was collected at less cost (tests/lean.py, which imports JAX)."""
    from tests import lean

    lean.collect_rarely()
