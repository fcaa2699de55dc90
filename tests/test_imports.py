"""Imports point one way, floor by floor (docs/design.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from itself and from rooms of lower floors.
FLOORS = {
    "messages": -1,
    "diffusion": 0,
    "models": 0,
    "data": 0,
    "samplers": 1,
    "objectives": 2,
    "training": 3,
    "eval": 4,
    "modes": 5,
}
FOREIGN = {"samplers": {"flax", "ml_collections"}, "objectives": {"flax", "ml_collections"}}
MATHEMATICS_ONLY = {"flax", "ml_collections", "optax", "orbax", "os", "pathlib"}


def imported(path):
    """First components of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_floors_below(room):
    files = sorted((ROOT / room).glob("**/*.py"))
    assert files
    for path in files:
        for module in set(imported(path)):
            if module in FLOORS and module != room:
                assert FLOORS[module] < FLOORS[room], f"{path.name} imports {module}"
            assert module not in {"main", "tests", "configs"}, f"{path.name} imports {module}"


@pytest.mark.parametrize("room", FOREIGN)
def test_objectives_and_samplers_know_no_flax_and_no_config(room):
    for path in (ROOT / room).glob("**/*.py"):
        assert not FOREIGN[room] & set(imported(path)), path.name


def test_diffusion_is_mathematics_only():
    for path in (ROOT / "diffusion").glob("**/*.py"):
        assert not MATHEMATICS_ONLY & set(imported(path)), path.name


def test_flax_stays_in_models():
    for room in set(FLOORS) - {"models"}:
        for path in (ROOT / room).glob("**/*.py"):
            assert "flax" not in set(imported(path)), path.name
