"""--mode=sample passes its flags to the sampler, and writes each sample to the right file."""

import json
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fewstep.data import to_uint8
from fewstep.data.spaces.grid import CAPTION_HEIGHT, GAP
from fewstep.data.spaces.pixels import pixel_space
from fewstep.data.spaces.points import point_space
from fewstep.modes.recorded_run import LoadedRun
from fewstep.modes.request import Request
from fewstep.objectives.stages import Stage
from fewstep.training.generate import initial_noise
from fewstep.training.sharding import make_mesh
from tests.training.runs import small_config, small_experiment
from tests.training.test_generate import OBJECTIVE, SHAPE, echo

SAMPLE = import_module("fewstep.modes.sample")
SAMPLING = import_module("fewstep.modes.sampling")
PARAMS = jnp.float32(1.0)


@pytest.fixture
def stages():
    """The stages of the run, which is at step 3."""
    return (Stage(0),)


@pytest.fixture
def denoises():
    """Whether the method of the run denoises, and so needs many sampling steps."""
    return False


@pytest.fixture
def sample(monkeypatch, tmp_path, stages, denoises):
    """A function that samples from a run by the given fields of a request."""
    _, experiment = small_experiment()
    objective = OBJECTIVE._replace(guidance_scale=1.5, stages=stages, denoises=denoises)
    experiment = experiment._replace(objective=objective, space=pixel_space(SHAPE), num_classes=4)
    # The seed of the run differs from that of samples.
    config = small_config(seed=7, **{"evaluate.batch_size": 16})
    asked, sizes, generate = [], [], SAMPLING.generate

    def load_run(request):
        asked.append(request)
        return LoadedRun(config, experiment, make_mesh(), PARAMS, 3)

    def generate_noted(sampler, params, labels, size, *rest):
        sizes.append(size)
        return generate(sampler, params, labels, size, *rest)

    monkeypatch.setattr(SAMPLE, "load_run", load_run)
    monkeypatch.setattr(SAMPLE, "run_id", lambda request: "id")
    monkeypatch.setattr(SAMPLING, "generate", generate_noted)

    def sample(**fields):
        request = Request(config=None, workdir=tmp_path / "run", **fields)
        SAMPLE.sample(request)
        assert (asked, sizes) == ([request], [16])
        asked.clear(), sizes.clear()

    return sample


def expected_images(seeds, labels, steps=1, scale=1.5):
    """Return the images of seeds and labels."""
    eps, keys = jax.jit(lambda i: initial_noise(0, i, SHAPE))(np.array(seeds, np.int32))
    condition = {"label": jnp.array(labels)}
    return to_uint8(echo(PARAMS, eps, condition, keys, steps=steps, guidance_scale=scale))


@pytest.mark.parametrize(
    ("fields", "labels", "steps", "scale"),
    [
        ({}, (1, 3, 1, 0), 1, 1.5),
        ({"steps": 4}, (1, 3, 1, 0), 4, 1.5),
        ({"guidance": 3.0}, (1, 3, 1, 0), 1, 3.0),
        ({"guidance": 0.0}, (1, 3, 1, 0), 1, 0.0),
        ({"labels": (2, 0, 3)}, (2, 0, 3, 2), 1, 1.5),
    ],
)
def test_every_field_reaches_the_sampler(sample, tmp_path, fields, labels, steps, scale):
    seeds = (5, 3, 17, 4)
    sample(seeds=seeds, out=tmp_path / "x.npz", **fields)
    with np.load(tmp_path / "x.npz") as made:
        np.testing.assert_array_equal(made["seed"], seeds)
        np.testing.assert_array_equal(made["y"], labels)
        np.testing.assert_array_equal(made["arr_0"], made["x"])  # as other codebases name it
        assert made["arr_0"].dtype == np.uint8
        difference = made["x"].astype(int) - expected_images(seeds, labels, steps, scale)
    assert np.abs(difference).max() <= 1  # another program may round the other way


def test_classes_are_asked_for_by_name(sample, tmp_path, monkeypatch, capsys):
    names = ("ant", "guinea pig", "cat", "0")
    monkeypatch.setattr(SAMPLE, "class_names", lambda folder: names)
    sample(seeds=(5, 1, 2), labels=("guinea pig", 3, "cat"), out=tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as made:
        np.testing.assert_array_equal(made["y"], [1, 3, 2])
    assert "guidance 1.5, classes 1 (guinea pig), 3 (0), 2 (cat): " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--labels=dog is not a class.*ant, guinea pig, cat, 0"):
        sample(labels=("dog",))


def test_a_name_of_a_class_is_no_part_of_a_path(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(SAMPLE, "class_names", lambda folder: ("../cat", "日" * 90, "c", "d"))
    sample(seeds=(0, 1), labels=("../cat", "日" * 90))
    (folder,) = (path for path in (tmp_path / "run" / "samples").iterdir() if path.is_dir())
    assert folder.name.endswith("-labels_0_1") and (folder / "000001-label_1.png").exists()


def test_without_a_name_files_lie_in_the_run_and_seeds_are_the_first_ones(sample, tmp_path):
    sample(steps=2)
    folder = tmp_path / "run" / "samples" / "step_00000003-2_steps-guidance_1.5-ema_0.999"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{seed:06d}-label_{seed % 4}.png" for seed in range(64)]
    beside = {path.name for path in folder.parent.iterdir() if path != folder}
    assert beside == {f"{folder.name}.png", f"{folder.name}.json"}
    for others in ({"guidance": 2.0}, {"labels": (1,)}, {"steps": 1}, {"solver": "heun"}):
        sample(**{"steps": 2, **others})
    assert sum(path.is_dir() for path in folder.parent.iterdir()) == 5


@pytest.mark.parametrize("others", [{"steps": 4}, {"guidance": 1.0}, {"solver": "heun"}])
def test_a_folder_with_other_images_is_refused(sample, tmp_path, others):
    out = tmp_path / "files"
    sample(seeds=(1,), out=out)
    before = (out / "000001-label_1.png").read_bytes()
    with pytest.raises(ValueError, match="files has other images already: .* now"):
        sample(seeds=(1,), out=out, **others)
    assert (out / "000001-label_1.png").read_bytes() == before


def test_a_folder_holds_one_draw(sample, tmp_path, capsys):
    out = tmp_path / "files"
    sample(seeds=(1, 2, 3), out=out)
    sample(seeds=(3, 4), labels=(3, 0), out=out)
    assert {path.name for path in out.iterdir()} == {"000003-label_3.png", "000004-label_0.png"}
    assert "; removed 2 pictures of the draw before" in capsys.readouterr().out


@pytest.mark.parametrize(
    "mine", ["mine/notes.txt", "mine/000001-label_1.png", "mine.json", "mine.png"]
)
def test_files_of_no_draw_are_refused_before_compute_and_stay(sample, tmp_path, mine, monkeypatch):
    monkeypatch.setattr(SAMPLING, "generate", None)
    (tmp_path / "mine").mkdir()
    (tmp_path / mine).write_text("kept")
    with pytest.raises(ValueError, match="mine would mix a draw with files that are not of one: "):
        sample(seeds=(1,), out=tmp_path / "mine")
    assert (tmp_path / mine).read_text() == "kept"


def test_an_npz_that_has_no_samples_stays(sample, tmp_path):
    file = tmp_path / "x.npz"
    np.savez(tmp_path / "weights.npz", x=np.ones(2), w=np.ones(2))
    np.save(tmp_path / "array.npy", np.ones(2))
    contents = [(tmp_path / name).read_bytes() for name in ("weights.npz", "array.npy")]
    for content in (*contents, b"text"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.npz is no file of samples, since it lacks seed"):
            sample(seeds=(1,), out=file)
        assert file.read_bytes() == content and not (tmp_path / "x.png").exists()


def test_a_picture_of_no_draw_beside_an_npz_stays(sample, tmp_path, monkeypatch):
    for seed in (1, 2):  # a draw replaces its own
        sample(seeds=(seed,), out=tmp_path / "y.npz")
    (tmp_path / "x.png").write_text("kept")
    with pytest.raises(ValueError, match=r"x.png would be replaced, .* is no x.npz"):
        sample(seeds=(1,), out=tmp_path / "x.npz")
    assert (tmp_path / "x.png").read_text() == "kept" and not (tmp_path / "x.npz").exists()


def test_the_name_of_points_has_their_seeds():
    made_from = {"step": 3, "sampling_steps": 1, "guidance_scale": 1.0, "network": "ema"}
    names = [
        SAMPLE.default_out(Request(workdir=Path("run"), seeds=seeds), space, made_from, ()).name
        for space in (point_space(2), pixel_space((8, 8, 1)))
        for seeds in (range(64), range(64, 128))
    ]
    assert len({*names}) == 3 and names[1].endswith("-ema-64_seeds_64_to_127.npz")


def test_a_draw_replaces_one_of_an_earlier_version(sample, tmp_path):
    out = tmp_path / "files"
    sample(seeds=(1,), out=out)
    record = json.loads((tmp_path / "files.json").read_text())
    del record["files"]
    (tmp_path / "files.json").write_text(json.dumps({**record, "labels": [0, 1, 2, 3]}))
    (out / "000001-label_1.png").rename(out / "000001.png")
    sample(seeds=(2,), out=out)
    assert [path.name for path in out.iterdir()] == ["000002-label_2.png"]


def test_a_file_beside_those_of_a_draw_is_refused_too(sample, tmp_path):
    out = tmp_path / "files"
    sample(seeds=(1,), out=out)
    (out / ".hidden").touch()
    sample(seeds=(2,), out=out)
    (out / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"not of one: a.jpg; choose another --out"):
        sample(seeds=(1,), out=out)
    assert {path.name for path in out.iterdir()} == {"000002-label_2.png", ".hidden", "a.jpg"}


def test_a_place_that_cannot_be_written_is_refused_before_compute(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(SAMPLING, "generate", None)
    (tmp_path / "file").write_text("no folder")
    for out in ("file/samples", "file/samples.npz"):
        with pytest.raises(OSError, match="cannot be written to .*; choose another --out"):
            sample(seeds=(1,), out=tmp_path / out)


def test_each_file_is_the_image_of_its_seed(sample, tmp_path):
    seeds = (*range(40, 20, -1), 7)
    sample(seeds=seeds, out=tmp_path / "files")
    for seed, image in zip(seeds, expected_images(seeds, np.array(seeds) % 4), strict=True):
        with Image.open(tmp_path / "files" / f"{seed:06d}-label_{seed % 4}.png") as file:
            difference = np.asarray(file).astype(int) - image[..., 0]
        assert np.abs(difference).max() <= 1


def test_a_grid_has_a_row_for_each_seed_and_every_image_is_as_alone(sample, tmp_path):
    sample(seeds=(9, 4), labels=(3, 0, 2), grid=("seeds", "labels"), out=tmp_path / "grid.npz")
    sample(seeds=(4,), labels=(2,), out=tmp_path / "alone.npz")
    with np.load(tmp_path / "grid.npz") as grid, np.load(tmp_path / "alone.npz") as alone:
        assert [*grid["seed"]] == [9] * 3 + [4] * 3 and [*grid["y"]] == [3, 0, 2] * 2
        np.testing.assert_array_equal(grid["x"][-1], alone["x"][0])
    cell = (96 + GAP, 64 + 2 * CAPTION_HEIGHT + GAP)
    assert Image.open(tmp_path / "grid.png").size == (3 * cell[0] + GAP, 2 * cell[1] + GAP)


@pytest.mark.parametrize(
    ("denoises", "steps", "warned"), [(True, 1, True), (True, 4, False), (False, 1, False)]
)
def test_a_method_of_many_steps_says_so_of_few(sample, tmp_path, capsys, steps, warned):
    sample(seeds=(1,), out=tmp_path / "files", steps=steps)
    told = capsys.readouterr().err
    assert ("tens of sampling steps" in told) == ("; add --steps=64" in told) == warned


@pytest.mark.parametrize("out", [".npz", "new/.npz", "a.jpg"])
def test_a_name_that_says_neither_folder_nor_file_is_refused(out):
    with pytest.raises(ValueError, match=f"--out={out} must be a folder, or a name that ends"):
        SAMPLE.check_request(Request(config=None, workdir=None, out=Path(out)))


@pytest.mark.parametrize("stages", [(Stage(0, (4,)), Stage(2, (2,)), Stage(5, (1,)))])
def test_a_number_of_steps_of_another_stage_is_refused_before_compute(
    sample, tmp_path, monkeypatch
):
    sample(steps=2, seeds=(1,))
    monkeypatch.setattr(SAMPLING, "generate", None)
    for steps in (1, 4):
        with pytest.raises(ValueError, match=rf"stage 2 of 3 \(2 sampling steps\).* in {steps}; "):
            sample(steps=steps, seeds=(1,), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
