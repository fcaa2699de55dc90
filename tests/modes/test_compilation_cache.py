from pathlib import Path

import jax
import pytest

from modes import compilation_cache
from modes.compilation_cache import folder_of, keep_compiled
from modes.request import Request
from tests.training.runs import small_config

WORKDIR = Path("/runs/digits")


@pytest.fixture
def unset():
    """JAX without a folder, and its own again."""
    own = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", own)


@pytest.mark.parametrize(
    ("config", "workdir", "folder"),
    [
        (small_config(), WORKDIR, Path("/runs/.compiled")),
        (None, WORKDIR, Path("/runs/.compiled")),  # --mode=sample
        (small_config(), None, None),  # --mode=describe
        (small_config(compilation_cache="/cache"), WORKDIR, Path("/cache")),
        (small_config(compilation_cache="/cache"), None, Path("/cache")),
        (small_config(compilation_cache="off"), WORKDIR, None),
    ],
)
def test_compiled_programs_are_kept_beside_the_run(config, workdir, folder):
    assert folder_of(Request(config, workdir)) == folder


def test_nothing_is_kept_where_one_may_not_write(monkeypatch):
    asked = []
    monkeypatch.setattr(compilation_cache.os, "access", lambda path, mode: asked.append(path))
    assert folder_of(Request(None, WORKDIR)) is None
    assert asked == [Path("/")]


def test_jax_keeps_what_it_is_told_to(unset, tmp_path):
    keep_compiled(Request(small_config(compilation_cache="off"), tmp_path / "run"))
    assert jax.config.jax_compilation_cache_dir is None
    keep_compiled(Request(None, tmp_path / "run"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".compiled")
    keep_compiled(Request(None, tmp_path / "other" / "run"))  # it has been told
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".compiled")
