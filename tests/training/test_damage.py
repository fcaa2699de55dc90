"""A run names a damaged checkpoint and restores the one before, or ends with one error."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fewstep.training.compiled_step import abstract_state
from fewstep.training.experiment import build
from fewstep.training.storage import restore
from tests.training import killed
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

NEWEST, BEFORE = 12, 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints 4, 8 and 12 of a player, a target, an average and moments."""
    folder = tmp_path_factory.mktemp("run")
    killed.run_process(folder, "shortcut", {})
    assert killed.saved_steps(folder) == [4, BEFORE, NEWEST]
    return folder


def restore_newest(folder):
    config = small_config("shortcut", steps=killed.STEPS)
    experiment = build(config, killed.small_network(config))
    abstract = abstract_state(experiment.objective, experiment.optimizers, 0, {}, mesh_of(1, 1))
    return restore.newest_state(folder, abstract)


def flip_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def remove(path, rng):
    path.unlink()


def remove_item(path, rng):
    item = Path(*path.parts[: path.parts.index("checkpoints") + 3])
    shutil.rmtree(item) if item.is_dir() else item.unlink()


DAMAGES = (flip_bit, truncate, remove, remove_item)


def files_of(folder, step):
    """The files of a checkpoint that are not empty."""
    found = sorted((folder / "checkpoints" / str(step)).rglob("*"))
    return [path for path in found if path.is_file() and path.stat().st_size]


def damage_and_restore(saved, folder, damage, rng):
    """Damage one file of the newest checkpoint; returns the file and the state restored then."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    path = rng.choice(files_of(folder, NEWEST))
    damage(path, rng)
    return path.relative_to(folder), restore_newest(folder)


def is_right(state, folder, states):
    """Whether a restored state is that of its step, and newer checkpoints were moved aside."""
    step = int(state.step)
    set_aside = [path.name for path in restore.damaged_checkpoints(folder)]
    return killed.have_same_bits(state, states[step]) and set_aside == [str(NEWEST)] * (
        step == BEFORE
    )


@pytest.fixture(scope="module")
def states(saved, tmp_path_factory):
    """What the two newest checkpoints hold, by step."""
    newest = restore_newest(saved)
    older = shutil.copytree(saved, tmp_path_factory.mktemp("older") / "run")
    shutil.rmtree(older / "checkpoints" / str(NEWEST))
    assert killed.have_same_bits(newest, killed.final_state(saved))
    return {NEWEST: newest, BEFORE: restore_newest(older)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_anywhere_restores_nothing_wrong(saved, states, tmp_path, damage, cases=4, seed=0):
    rng, wrong = random.Random(seed), []
    for _ in range(cases):
        path, state = damage_and_restore(saved, tmp_path / "run", damage, rng)
        if not is_right(state, tmp_path / "run", states):
            wrong.append(str(path))
    assert not wrong


def test_a_flipped_bit_of_any_network_is_named_and_the_checkpoint_kept_aside(
    saved, states, tmp_path, capfd
):
    folder = shutil.copytree(saved, tmp_path / "run")
    for path in files_of(folder, NEWEST):
        if "ema_0.999" in path.parts and path.parent.name == "d":
            flip_bit(path, random.Random(1))
    assert killed.have_same_bits(restore_newest(folder), states[BEFORE])
    message = capfd.readouterr().err
    assert f"checkpoints/{NEWEST}" in message and f"{BEFORE} is used" in message
    assert (folder / "damaged" / str(NEWEST) / "network").is_dir()
    assert killed.saved_steps(folder) == [4, BEFORE]


def test_a_step_that_is_damaged_again_is_kept_beside_the_first(saved, states, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    for _ in range(3):  # the run makes the step again, and it is damaged again
        made = folder / "checkpoints" / str(NEWEST)
        shutil.copytree(saved / "checkpoints" / str(NEWEST), made, dirs_exist_ok=True)
        shutil.rmtree(made / "network")
        assert killed.have_same_bits(restore_newest(folder), states[BEFORE])
    kept = [path.name for path in restore.damaged_checkpoints(folder)]
    assert kept == [str(NEWEST), f"{NEWEST}.1", f"{NEWEST}.2"]


def test_without_a_whole_checkpoint_nothing_is_changed(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    for step in killed.saved_steps(folder):
        shutil.rmtree(folder / "checkpoints" / str(step) / "network")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=rf"checkpoints/{NEWEST} cannot be read.*of 3 is whole"):
        restore_newest(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_single_network_is_read_from_the_checkpoint_before(saved, states, tmp_path, capfd):
    folder = shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / str(NEWEST) / "target")
    shapes = {name: np.asarray(leaf) for name, leaf in states[BEFORE].followers["target"].items()}
    params, step = restore.restore_network(folder, "target", shapes)
    assert step == BEFORE and killed.have_same_bits(params, states[BEFORE].followers["target"])
    assert f"{BEFORE} is used" in capfd.readouterr().err
    with pytest.raises(ValueError, match=f"checkpoints/{NEWEST} cannot be read"):
        restore.restore_network(folder, "target", shapes, NEWEST)
    assert killed.saved_steps(folder) == [4, BEFORE, NEWEST]
