"""The memory that a step frees stays with the process, on CPUs with glibc."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from fewstep.modes import host_memory

# Writes 64 MB, more than glibc ever keeps by default, ten times; prints the page faults.
FAULTS = """
import resource
from fewstep.modes.host_memory import keep_freed_memory

keep_freed_memory()
size = 2**26  # unknown to the compiler, which would compute constants
b"x" * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not host_memory.has_glibc(), reason="glibc only")
@pytest.mark.some_days(2)
def test_freed_memory_is_used_again() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < PAGES


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"JAX_PLATFORMS": "cpu"}, 3),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, 0),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, 0),
    ],
)
def test_the_users_settings_stay(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: int
) -> None:
    library = Mock()
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: library)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    host_memory.keep_freed_memory()
    assert library.mallopt.call_count == options


@pytest.mark.parametrize(("platforms", "cpu"), [("cpu", True), ("cuda,cpu", False)])
def test_accelerators_keep_the_default(
    monkeypatch: pytest.MonkeyPatch, platforms: str, cpu: bool
) -> None:
    monkeypatch.setattr(host_memory.jax, "config", Mock(jax_platforms=platforms))
    assert host_memory.computes_on_cpu() is cpu


def test_a_plugin_means_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.jax, "config", Mock(jax_platforms=None))
    monkeypatch.setattr(host_memory, "find_spec", lambda _: None)
    monkeypatch.setattr(host_memory, "entry_points", lambda group: ())
    assert host_memory.computes_on_cpu()
    monkeypatch.setattr(host_memory, "entry_points", lambda group: ("cuda",))
    assert not host_memory.computes_on_cpu()
