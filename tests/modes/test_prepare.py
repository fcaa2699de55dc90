"""Preparing latents in one process and in two, and after a kill: always the same bytes."""

from importlib import import_module

import pytest

from tests.modes import prepared

PREPARE = import_module("fewstep.modes.prepare")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The contents of a data folder that one process has prepared."""
    root = tmp_path_factory.mktemp("alone")
    (done,) = prepared.prepare(root)
    assert f"train: 1437 images in {prepared.SHARDS} shards encoded" in done.stderr
    return prepared.contents(root)


def test_two_processes_write_the_files_of_one_and_one_speaks(undisturbed, tmp_path):
    first, second = prepared.prepare(tmp_path, 2)
    assert prepared.contents(tmp_path) == undisturbed
    assert len(undisturbed) == 2 * prepared.SHARDS + 1  # and the codec
    assert "its latents by linear are ready in" in first.stdout
    assert second.stdout == second.stderr == ""
    assert not list(tmp_path.rglob("manifest-*")) + list(tmp_path.glob(".shared-*"))


def test_a_killed_preparation_goes_on_to_the_same_bytes(undisturbed, tmp_path):
    assert prepared.kill(tmp_path, 2, shards=4)
    assert 4 <= prepared.shards_in(tmp_path) < prepared.SHARDS
    prepared.prepare(tmp_path)
    assert prepared.contents(tmp_path) == undisturbed


@pytest.mark.parametrize("blind", [[], [1, 3]])
def test_processes_that_share_no_disk_are_refused(tmp_path, monkeypatch, blind):
    monkeypatch.setattr(PREPARE, "has_peers", lambda: True)
    seen = []
    monkeypatch.setattr(PREPARE, "blind_processes", lambda sees: seen.append(sees()) or blind)
    if not blind:
        assert PREPARE.preparing_group(tmp_path / "data").count == 1  # of one JAX process
    else:
        with pytest.raises(ValueError, match=r"process\(es\) 1, 3 do not see .*all hosts share"):
            PREPARE.preparing_group(tmp_path / "data")
    assert seen == [True] and not list((tmp_path / "data").iterdir())
