"""Fields that were added after a run was recorded, and fields that were removed since."""

import inspect
import shutil

import pytest
from ml_collections import ConfigDict

from fewstep.configs import base, objectives
from fewstep.data import FIRST_DECODING
from fewstep.models import NETWORKS
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.objectives import OBJECTIVES
from fewstep.training.networks import with_network_fields
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import workdir
from fewstep.training.storage.defaults import fill_missing_fields, removed_fields
from fewstep.training.storage.identity import as_dict, config_changes
from fewstep.training.teacher import load_teacher
from tests.training.runs import save_run, small_config, small_experiment


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of this version."""
    return save_run(tmp_path_factory.mktemp("runs") / "run", "flow_matching")


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def later(monkeypatch):
    """A later version with a new field of the data and one of an objective.

    Returns the values that the objective gets for its new field.
    """
    given, denoising = [], OBJECTIVES["denoising"]

    def tilted(model, *, tilt=0.0, **fields):
        given.append(tilt)
        return denoising(model, **fields)

    parameters = inspect.signature(denoising).parameters
    tilt = inspect.Parameter("tilt", inspect.Parameter.KEYWORD_ONLY, default=0.0)
    tilted.__signature__ = inspect.Signature([*parameters.values(), tilt])
    monkeypatch.setitem(OBJECTIVES, "denoising", tilted)
    for module, group, field in ((base, "data", "sharpen"), (objectives, "denoising", "tilt")):
        monkeypatch.setattr(module, group, with_field(getattr(module, group), field))
    return given


def with_field(fields, name):
    """The function `fields`, with one more field of value 0.5."""

    def extended():
        found = fields()
        found[name] = 0.5
        return found

    return extended


def test_a_run_without_a_later_field_goes_on_as_by_its_default(run, later):
    id = workdir.recorded_identity(run).id
    with pytest.raises(ValueError, match=r"config: data.sharpen \(0.5 there, 1.0 now\)"):
        workdir.start_run(
            run, with_network_fields(small_config("flow_matching", **{"data.sharpen": 1.0}))
        )
    with pytest.raises(ValueError, match=r"config: objective.tilt \(0.5 there, 1.0 now\)"):
        workdir.start_run(
            run, with_network_fields(small_config("flow_matching", **{"objective.tilt": 1.0}))
        )
    assert workdir.start_run(run, with_network_fields(small_config("flow_matching"))).id == id
    assert workdir.recorded_identity(run).config["objective"]["tilt"] == 0.5


def test_a_run_without_a_later_field_samples_and_teaches(run, later, capsys):
    sampled = load_run(Request(workdir=run))
    assert (sampled.step, sampled.config.data.sharpen, set(later)) == (5, 0.5, {0.5})
    config, experiment = small_experiment("cd_flow", teacher=str(run))
    assert set(load_teacher(config, experiment, make_mesh())) == {"teacher"}
    assert set(later) == {0.5} and capsys.readouterr().err == ""


def test_a_run_with_a_removed_field_is_refused_by_its_name(tmp_path, later, monkeypatch):
    run = save_run(tmp_path / "run", "flow_matching")
    monkeypatch.undo()
    config, experiment = small_experiment("cd_flow", teacher=run)
    for use in (
        lambda: load_run(Request(workdir=tmp_path / "run")),
        lambda: load_teacher(config, experiment, make_mesh()),
    ):
        with pytest.raises(ValueError, match=r"run was .*another version.*sharpen, objective.tilt"):
            use()
    gone = r"data.sharpen \(0.5 there, None now\); objective.tilt \(0.5 there, None now\)"
    with pytest.raises(ValueError, match=gone):
        workdir.start_run(tmp_path / "run", with_network_fields(small_config("flow_matching")))


def remove_field(fields, *path):
    """The fields without the one at the end of a path."""
    name, *rest = path
    if rest:
        return {**fields, name: remove_field(fields[name], *rest)}
    return {other: value for other, value in fields.items() if other != name}


def test_what_is_recorded_stays_and_what_is_not_is_the_default_of_its_own_part():
    # The distance of ect is pseudo_huber with c = 0.
    fields = fill_missing_fields(as_dict(small_config("ect")))
    assert fill_missing_fields(fields) == fields
    lacking = remove_field(fields, "objective", "distance", "c")
    assert fill_missing_fields(lacking) == fields
    lacking["objective"]["distance"]["name"] = "squared_l2"  # which has no c
    assert fill_missing_fields(lacking)["objective"]["distance"]["c"] is None
    lacking = remove_field(fields, "objective", "distance")
    assert fill_missing_fields(lacking)["objective"]["distance"]["name"] == "pseudo_huber"


def test_the_few_fields_whose_default_is_another_are_what_runs_did_before():
    fields = as_dict(small_config())
    older = remove_field(remove_field(fields, "data", "decoding"), "data", "label_shares")["data"]
    found = fill_missing_fields({**fields, "data": older})["data"]
    assert (found["decoding"], found["label_shares"]) == (FIRST_DECODING, "equal")
    changed = config_changes({**fields, "data": older}, fields)
    assert changed == [("data.label_shares", "equal", "data")]


def test_a_removed_field_of_none_was_a_default():
    fields = as_dict(small_config())
    fields["model"]["gone"], fields["objective"]["distance"]["gone"] = None, 3
    fields["player_optimizers"] = {"network": {"b1": 0.0}}
    assert removed_fields(fields) == ["objective.distance.gone"]
    fields["objective"]["name"] = "of another version"
    assert removed_fields(fields) == []


def test_another_network_keeps_nothing_of_the_default_one():
    config = as_dict(small_config("flow_matching"))
    config["model"] = {"name": "mlp", "width": 16}
    filled = fill_missing_fields(config)["model"]
    assert (filled["name"], filled["width"]) == ("mlp", 16)
    assert filled["depth"] == 3
    assert filled["patch_size"] is filled["size"] is None


@pytest.mark.parametrize(
    ("method", "network"), [("shortcut", "dit"), ("cd", "dit"), ("shortcut", "mlp")]
)
def test_a_network_s_missing_field_is_what_the_run_had(method, network):
    config = small_config(method)
    config.model = ConfigDict({"name": network})
    recorded = as_dict(with_network_fields(config))
    for field in recorded["model"].keys() - {"name"}:
        model = {name: value for name, value in recorded["model"].items() if name != field}
        assert not config_changes({**recorded, "model": model}, recorded)


def test_a_field_that_only_a_network_declares_is_no_removed_one(monkeypatch):
    def build(shape, num_classes=0, *, units=32):
        return None

    monkeypatch.setitem(NETWORKS, "plain", NETWORKS["mlp"]._replace(build=build))
    config = as_dict(small_config("flow_matching"))
    config["model"] = {"name": "plain", "units": 16}
    assert removed_fields(config) == []
    config["model"]["gone"] = 1
    assert removed_fields(config) == ["model.gone"]
