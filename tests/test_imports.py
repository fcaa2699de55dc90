"""Imports point one way, floor by floor (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.modes import MODES

ROOT = Path(__file__).parent.parent
# A room may import from itself and from lower floors; one inside another is named by its path.
FLOORS = {
    "messages": 0,
    "progress": 0,
    "weights": 0,
    "parts": 0,
    "buckets": 0,
    "configs": 1,
    "densities": 1,
    "diffusion": 1,
    "files": 1,
    "latents": 1,
    "data/arrays": 2,
    "data/folders": 3,
    "data/spaces": 3,
    "data": 4,
    "models": 4,
    "samplers": 5,
    "objectives": 6,
    "training/cluster": 7,
    "training/storage": 8,
    "training": 9,
    "training/cost": 10,
    "eval/features": 11,
    "eval/metrics": 12,
    "eval/report": 13,
    "eval": 14,
    "modes": 15,
}
# A report draws what was measured: it needs no network.
APART = {"eval/report": {"eval/features"}}
# What a record lacks is a default of these (training/storage/defaults.py); a run's own config is an
# argument everywhere.
# The values of a sweep are typed as fields, and are read as those of the command line.
DEFAULTS = {
    "training/storage": {"configs/base", "configs/objectives"},
    "modes": {"configs/command_line", "configs/fields", "configs/overrides"},
}
FOREIGN = {"samplers": {"flax", "ml_collections"}, "objectives": {"flax", "ml_collections"}}
# Half of the start of every command, if it imported them.
FILES = {"import": "import_weights"}  # of modes whose name is no name of a module
SLOW = {"sklearn", "tensorflow_datasets", "matplotlib", "scipy.stats", "jax2onnx"}
MATHEMATICS_ONLY = {"flax", "ml_collections", "optax", "orbax", "os", "pathlib"}


def imported(path):
    """First components of the modules that a file imports."""
    return {module.split(".")[0] for module in modules(path)}


def modules(path):
    """The modules that a file imports, and for each name from one `module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    """The innermost room that a path or a module in it belongs to, None outside of them."""
    return max(
        (room for room in FLOORS if f"{path}/".startswith(f"{room}/")), key=len, default=None
    )


def files(room):
    """The files of a room, without those of the rooms inside it."""
    found = (
        [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else (ROOT / room).glob("**/*.py")
    )
    inside = [path for path in found if room_of(path.relative_to(ROOT).with_suffix("")) == room]
    assert inside, room
    return inside


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_floors_below(room):
    for path in files(room):
        for module in modules(path):
            first, *rest = module.split(".")
            assert first not in {"main", "tests", "bench", "examples"}, f"{path} imports {module}"
            if first == "fewstep" and rest != ["__version__"]:
                assert rest[:1] not in (["main"], ["library"]), f"{path} imports {module}"
                other = room_of("/".join(rest))
                if other == "configs" != room:
                    assert "/".join(rest[:2]) in DEFAULTS.get(room, ()), f"{path} imports {module}"
                assert other == room or FLOORS[other] < FLOORS[room], f"{path} imports {module}"
                assert other not in APART.get(room, set()), f"{path} imports {module}"


@pytest.mark.parametrize("room", FOREIGN)
def test_objectives_and_samplers_know_no_flax_and_no_config(room):
    for path in files(room):
        assert not FOREIGN[room] & imported(path), path.name


def test_diffusion_is_mathematics_only():
    for path in files("diffusion"):
        assert not MATHEMATICS_ONLY & imported(path), path.name


# What reads the files of Flax's own checkpoints.
FLAX_FORMATS = {"flax_checkpoints.py"}


def test_flax_stays_in_models():
    for room in set(FLOORS) - {"models"}:
        for path in files(room):
            assert "flax" not in imported(path) or path.name in FLAX_FORMATS, path.name


def test_one_file_imports_jax2onnx():
    # It is slow to import, and few install it.
    users = {path for room in FLOORS for path in files(room) if "jax2onnx" in path.read_text()}
    importing = {path.name for path in users if "jax2onnx" in imported(path)}
    assert importing == {"onnx.py"}


def test_no_mode_imports_another():
    # What two of them do is a function beside them.
    for name in MODES:
        # A file cannot be called import.
        files = {mode: FILES.get(mode, mode) for mode in MODES}
        others = {f"fewstep.modes.{file}" for mode, file in files.items() if mode != name}
        for module in modules(ROOT / "modes" / f"{files[name]}.py"):
            assert ".".join(module.split(".")[:3]) not in others, f"{name} imports {module}"


def test_slow_packages_are_imported_where_they_are_used():
    code = "import sys, fewstep.modes; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not SLOW & {*loaded.stdout.split()}
