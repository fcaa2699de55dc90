"""--mode=import of EDM's files: the run's meaning comes from what the pickle says."""

import jax
import numpy as np
import pytest

from fewstep.configs import digits as CONFIGS
from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.sample import sample
from fewstep.modes.student import taught
from fewstep.training.storage import workdir
from tests.published import write_safetensors
from tests.unets import edm_tensors, small_unet, write_edm


def imported(path, folder, **fields):
    """Import a file; returns the loaded run. fields: as of `Request`."""
    import_weights(Request(workdir=folder, weights=path, **fields))
    return load_run(Request(workdir=folder))


@pytest.mark.parametrize(
    ("name", "own"), [("song_unet", {"variant": "ncsnpp", "classes": 0}), ("adm_unet", {})]
)
def test_a_file_of_edm_becomes_a_run_of_edm(name, own, tmp_path, capsys):
    _, params, sizes = small_unet(name, **own)
    path = write_edm(tmp_path / "edm.pkl", edm_tensors(name, **own), sigma_data=0.6)
    run = imported(path, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    config, model = run.config, run.experiment.model
    assert (config.method, model.path.name, model.kind.name) == ("edm", "ve", "F")
    assert (model.path.t_min, model.path.t_max) == (0.002, 80.0)
    assert config.prediction.sigma_data == 0.6 and config.model.time_scale == 1.0
    assert config.objective.solver.name == "heun" and config.objective.ends_at == "data"
    own = {"width": 4, "multipliers": [1, 2], "depth": 1, "attention_sides": [4]}
    assert own.items() <= config.model.to_dict().items()
    assert (config.model.name, config.data.num_classes) == (name, sizes.classes)
    assert workdir.recorded_identity(tmp_path / "run").imported["layout"] == name
    assert f"8 x 8 x 1, {sizes.classes} classes" in capsys.readouterr().out


def test_it_samples_and_teaches(tmp_path):
    teacher = tmp_path / "teacher"
    given = {"data.name": "digits"}
    tensors = edm_tensors(multipliers=(1,))  # few blocks, which compile sooner
    imported(write_edm(tmp_path / "edm.pkl", tensors), teacher, fields=given)
    sample(Request(workdir=teacher, steps=2, seeds=(0, 1), out=tmp_path / "x.npz"))
    drawn = np.load(tmp_path / "x.npz")["x"]
    assert drawn.shape == (2, 8, 8, 1) and drawn.dtype == np.uint8 and drawn.std() > 1.0
    config = CONFIGS.get_config("cd")
    config.teacher = str(teacher)
    student = taught(config, workdir.load_config(teacher), given=("teacher",))
    assert (student.model.name, tuple(student.model.multipliers)) == ("song_unet", (1,))
    assert (student.path.name, student.prediction.sigma_data) == ("ve", 0.5)


def test_a_state_dict_does_not_say_what_its_output_means(tmp_path):
    path = write_safetensors(tmp_path / "edm.safetensors", edm_tensors())
    message = r"does not say what .* EDM \(EDMPrecond\), add --layout=song_unet"
    with pytest.raises(ValueError, match=message):
        imported(path, tmp_path / "run")
    run = imported(path, tmp_path / "run", layout="song_unet")
    assert run.config.prediction.sigma_data is None and run.config.path.name == "ve"


@pytest.mark.parametrize("name", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "SongUNet"])
def test_other_preconditioning_is_refused(name, tmp_path):
    path = write_edm(tmp_path / "edm.pkl", edm_tensors(), name)
    message = f"holds a {name}; the meaning of its output is not known, only that of EDMPrecond"
    for layout in ("", "song_unet"):
        with pytest.raises(ValueError, match=message):
            imported(path, tmp_path / "run", layout=layout)
    assert not (tmp_path / "run").exists()


def test_data_of_other_classes_are_refused(tmp_path):
    path = write_edm(tmp_path / "edm.pkl", edm_tensors(classes=5))
    message = "label table in .* has 5 classes .* digits has 10"
    with pytest.raises(ValueError, match=message):
        imported(path, tmp_path / "run", fields={"data.name": "digits"})
    # Without classes the images of any data set serve to compare with.
    path = write_edm(tmp_path / "edm.pkl", edm_tensors(classes=0))
    run = imported(path, tmp_path / "run", fields={"data.name": "digits"})
    assert run.experiment.num_classes == 0
