"""--mode=checkpoints lists every folder among the checkpoints."""

from importlib import import_module

from fewstep.training.storage.checkpoint import FOLDER

CHECKPOINTS = import_module("fewstep.modes.checkpoints")


def test_a_checkpoint_that_the_run_removes_meanwhile_has_a_row(tmp_path):
    row = CHECKPOINTS.checkpoint_row(tmp_path / "8", "whole")
    assert row.split(maxsplit=1) == ["8", CHECKPOINTS.GONE]


def test_an_unused_folder_is_listed_with_the_reason(tmp_path):
    names = ("2", "06", "6 (copy)", "8.orbax-checkpoint-tmp-0")
    for name in names:
        (tmp_path / FOLDER / name).mkdir(parents=True)
    (tmp_path / FOLDER / "notes.txt").write_text("of the user")
    found = {
        f.name: CHECKPOINTS.reason_unused(f) for f in CHECKPOINTS.unused_folders(tmp_path, [2])
    }
    assert set(found) == set(names[1:])
    assert found[names[3]].startswith("not complete")
    assert all(found[name].startswith("not used") for name in names[1:3])
