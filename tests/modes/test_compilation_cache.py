import os
import stat
from pathlib import Path

import jax
import pytest

from fewstep.modes import compilation_cache
from fewstep.modes.compilation_cache import (
    FOLDER,
    cache_folder,
    enable_compilation_cache,
    is_own_group,
)
from fewstep.modes.request import Request
from tests.training.runs import small_config

WORKDIR = Path("/runs/digits")


@pytest.fixture
def no_cache_folder():
    """Unset the folder of JAX for a test."""
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
        (small_config(), Path("gs://bucket/run"), None),
        (small_config(compilation_cache="/cache"), WORKDIR, Path("/cache")),
        (small_config(compilation_cache="/cache"), None, Path("/cache")),
        (small_config(compilation_cache="off"), WORKDIR, None),
    ],
)
def test_compiled_programs_are_kept_beside_the_run(config, workdir, folder):
    assert cache_folder(Request(config, workdir)) == folder


def test_no_programs_are_kept_in_a_folder_that_is_not_writable(monkeypatch):
    asked = []
    monkeypatch.setattr(compilation_cache.os, "access", lambda path, mode: asked.append(path))
    assert cache_folder(Request(None, WORKDIR)) is None
    assert asked == [Path("/")]


def test_the_cache_is_off_or_beside_the_run_or_as_set_before(no_cache_folder, tmp_path):
    off = Request(small_config(compilation_cache="off"), tmp_path / "run")
    enable_compilation_cache(off, trains=True)
    assert jax.config.jax_compilation_cache_dir is None
    enable_compilation_cache(Request(None, tmp_path / "run"), trains=True)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".compiled")
    other = Request(None, tmp_path / "other" / "run")
    enable_compilation_cache(other, trains=True)  # JAX has a folder already
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".compiled")


def enabled_folder(workdir, config=None, trains=True):
    """Return the folder that JAX uses after `enable_compilation_cache`; None if it has none."""
    jax.config.update("jax_compilation_cache_dir", None)
    enable_compilation_cache(Request(config, workdir), trains)
    return jax.config.jax_compilation_cache_dir


@pytest.fixture
def runs(tmp_path):
    """A folder of runs with compiled programs of this user."""
    (tmp_path / "runs" / FOLDER / "autotuned").mkdir(parents=True)
    (tmp_path / "runs" / FOLDER / "program-cache").write_bytes(b"native code")
    return tmp_path / "runs"


def test_the_folder_is_made_for_this_user_alone(no_cache_folder, tmp_path):
    umask = os.umask(0)
    try:
        (tmp_path / "runs").mkdir(0o755)
        assert enabled_folder(tmp_path / "runs" / "a") == str(tmp_path / "runs" / FOLDER)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "runs" / FOLDER).stat().st_mode) == 0o700


def test_a_run_that_does_not_exist_gets_a_folder_only_if_it_is_trained(no_cache_folder, tmp_path):
    new, config = tmp_path / "new" / "deep" / "run", small_config()
    for given in (None, config):
        assert enabled_folder(new, given, trains=False) is None
    assert enabled_folder(None, config, trains=False) is None
    assert list(tmp_path.iterdir()) == []
    own = str(tmp_path / "own")
    assert enabled_folder(new, small_config(compilation_cache=own), trains=False) == own
    assert enabled_folder(new, config) == str(new.parent / FOLDER)
    # Another mode uses the folder that is there, and makes one for a run that is.
    assert enabled_folder(new, config, trains=False) == str(new.parent / FOLDER)
    (tmp_path / "run").mkdir()
    assert enabled_folder(tmp_path / "run", trains=False) == str(tmp_path / FOLDER)


@pytest.mark.parametrize(
    ("entry", "mode", "reason"),
    [
        (".", 0o757, "everybody can write to {}; chmod o-w"),
        ("..", 0o777, "everybody can write to {}; chmod o-w"),
        (FOLDER, 0o770, "others can write to {}; delete it"),
        (FOLDER, 0o1777, "others can write to {}; delete it"),
        (FOLDER, 0o702, "others can write to {}; delete it"),
        (f"{FOLDER}/program-cache", 0o664, "{} may come from another user; delete"),
        (f"{FOLDER}/autotuned", 0o757, "{} may come from another user; delete"),
    ],
)
def test_a_folder_that_others_can_write_to_is_not_used(
    no_cache_folder, runs, capsys, entry, mode, reason
):
    changed = (runs / entry).resolve()
    assert enabled_folder(runs / "a") is not None
    changed.chmod(mode)
    assert enabled_folder(runs / "a") is None
    changed.chmod(0o755)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: compiled programs are not kept: {reason.format(changed)}")
    assert "by $JAX_COMPILATION_CACHE_DIR, where" in line
    assert enabled_folder(runs / "a") is not None


def test_the_folder_of_a_config_is_checked_too(no_cache_folder, runs, tmp_path, capsys):
    own = small_config(compilation_cache=str(tmp_path / "own"))
    assert enabled_folder(runs / "a", own) == str(tmp_path / "own")
    (tmp_path / "own").chmod(0o777)
    assert enabled_folder(runs / "a", own) is None
    assert "by --config.compilation_cache=FOLDER, where" in capsys.readouterr().err


def test_a_folder_that_the_user_gave_to_jax_stays(no_cache_folder, runs):
    (runs / FOLDER).chmod(0o777)
    jax.config.update("jax_compilation_cache_dir", "/cache")
    enable_compilation_cache(Request(None, runs / "a"), trains=True)
    assert jax.config.jax_compilation_cache_dir == "/cache"


def test_sticky_parents_and_private_ones_are_used(no_cache_folder, runs, monkeypatch):
    runs.chmod(0o1777)
    assert enabled_folder(runs / "a") is not None
    runs.chmod(0o775)
    for own in (True, False):
        monkeypatch.setattr(compilation_cache, "is_own_group", lambda gid, own=own: own)
        assert (enabled_folder(runs / "a") is not None) == own
    (runs / FOLDER).chmod(0o700)
    (runs / FOLDER / "program-cache").chmod(0o664)  # nobody else can enter the folder
    runs.chmod(0o755)
    assert enabled_folder(runs / "a") is not None


def test_what_belongs_to_another_user_is_not_used(no_cache_folder, runs, monkeypatch, capsys):
    monkeypatch.setattr(compilation_cache.os, "geteuid", lambda: 54321)
    assert enabled_folder(runs / "a") is None
    assert " belongs to " in capsys.readouterr().err


def test_only_one_user_in_a_group_makes_it_private(monkeypatch):
    class Named:
        pw_name, pw_gid, gr_name, gr_mem = "ada", 7, "ada", ()

    monkeypatch.setattr(compilation_cache.pwd, "getpwuid", lambda uid: Named)
    monkeypatch.setattr(compilation_cache.grp, "getgrgid", lambda gid: Named)
    assert is_own_group(7) and not is_own_group(8)
    Named.gr_mem = ("ada", "bob")
    assert not is_own_group(7)
    Named.gr_mem, Named.gr_name = (), "users"
    assert not is_own_group(7)


@pytest.mark.parametrize("where", ["folder", "parent", "relative"])
def test_links_are_followed_and_their_targets_checked(
    no_cache_folder, runs, tmp_path, where, capsys
):
    if where == "folder":
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / FOLDER).symlink_to(runs / FOLDER)
    else:
        target = runs if where == "parent" else Path("x/../runs")
        (tmp_path / "x").mkdir()
        (tmp_path / "linked").symlink_to(target)
    assert enabled_folder(tmp_path / "linked" / "a") == str(tmp_path / "linked" / FOLDER)
    runs.chmod(0o777)
    assert enabled_folder(tmp_path / "linked" / "a") is None
    assert f"everybody can write to {runs}" in capsys.readouterr().err


def test_a_circle_of_links_is_refused(no_cache_folder, tmp_path, capsys):
    (tmp_path / FOLDER).symlink_to(tmp_path / FOLDER)
    assert enabled_folder(tmp_path / "a") is None
    assert "symbolic links" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_named(no_cache_folder, tmp_path, capsys):
    (tmp_path / FOLDER).write_text("")
    assert enabled_folder(tmp_path / "a") is None
    assert f"{tmp_path / FOLDER}" in capsys.readouterr().err
