"""--mode=evaluate --maps on runs of exact networks, in place of those that `load_run` reads."""

import json
from collections import Counter
from importlib import import_module
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from fewstep.data.spaces.points import point_space
from fewstep.diffusion.path import PATHS
from fewstep.eval.report.maps import map_plots, newest_maps
from fewstep.modes.evaluate import evaluate
from fewstep.modes.recorded_run import LoadedRun
from fewstep.modes.request import Request
from fewstep.objectives.denoising import denoising
from fewstep.objectives.mean_flow import mean_flow
from fewstep.training.sharding import make_mesh
from tests.gaussian import Gaussian
from tests.networks import exact_denoiser, exact_network, unscaled_model
from tests.training.runs import small_experiment

MAPS = import_module("fewstep.modes.maps")
PATH = PATHS["linear"]()
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Folders of runs by method: flow_matching, mean_flow, and flow_matching of other examples."""
    u = lambda x, t, s, condition: GAUSSIAN.average_velocity(PATH, x, t, s)
    jumps = unscaled_model(exact_network(u)._replace(second_time="interval"), PATH, "velocity")
    flow, mesh, runs = exact_denoiser(GAUSSIAN, PATH), make_mesh(), {}

    def add(name, method, model, objective, dimension=2):
        config, experiment = small_experiment(
            method, **{"evaluate.num_samples": 64, "evaluate.batch_size": 40}
        )
        experiment = experiment._replace(
            model=model,
            objective=objective,
            space=point_space(dimension),
            num_classes=0,
            guidable=False,
        )
        runs[tmp_path / name] = LoadedRun(
            config, experiment, mesh, {"offset": 0.0}, 30, tmp_path / name
        )
        (tmp_path / name).mkdir()

    add("flow", "flow_matching", flow, denoising(flow))
    add("jumps", "mean_flow", jumps, mean_flow(jumps))
    add("other", "flow_matching", flow, denoising(flow), dimension=3)
    monkeypatch.setattr(MAPS, "load_run", lambda request: runs[request.workdir])
    return tmp_path


def test_numbers_curves_and_ends_are_written(folders, capsys):
    run = folders / "jumps"
    asked = Request(
        workdir=run, maps=True, teacher=str(folders / "flow"), beside=str(folders / "flow")
    )
    evaluate(asked)
    result = json.loads((run / "maps" / "step_00000030.json").read_text())
    assert max(result["error"]) < 5e-3 and result["agreement"] > 0.999
    assert (result["samples"], result["method"]) == (64, "mean_flow")
    assert result["teacher"] == {
        "run": str(folders / "flow"),
        "method": "flow_matching",
        "step": 30,
    }
    # One step of flow matching gives the mean, whatever the noise.
    assert result["beside"] < 0.9
    pictures = {path.name for path in (run / "maps").glob("*.png")}
    assert pictures == {"step_00000030_curves.png", "step_00000030_ends.png"}
    assert "agreement with the teacher 1.0000" in capsys.readouterr().out
    assert newest_maps(run) == result and newest_maps(folders / "flow") is None


@pytest.mark.parametrize(
    ("classes", "asked", "counts"),
    [(0, 1, {-1: 2}), (3, 4, {0: 2, 1: 2, 2: 2}), (2, 5, {0: 3, 1: 2})],
)
def test_every_label_has_samples_to_compare(classes, asked, counts):
    fields = SimpleNamespace(evaluate=SimpleNamespace(num_samples=asked))
    run = SimpleNamespace(config=fields, experiment=SimpleNamespace(num_classes=classes))
    assert Counter(MAPS.equal_labels(run).tolist()) == counts


def test_a_page_has_the_curves_of_the_runs_with_maps(folders):
    evaluate(Request(workdir=folders / "jumps", maps=True, teacher=str(folders / "flow")))
    group = lambda name: [type("Run", (), {"folder": folders / name})]
    plots = map_plots({"mean_flow": group("jumps"), "flow_matching": group("flow")})
    assert [[line.label for line in plot.lines] for plot in plots.values()] == [["mean_flow"]] * 2
    assert map_plots({"flow_matching": group("flow")}) == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"--maps follows the trajectories of a teacher, and .*jumps has none; .*--teacher="),
        ({"teacher": "jumps"}, "--teacher=.*jumps was trained by mean_flow, which has no traject"),
        ({"teacher": "other"}, r"--teacher=.*other has other examples .*\(3,\), not \(2,\)"),
        ({"teacher": "flow", "beside": "other"}, "--beside=.*other has other examples"),
        (
            {"teacher": "flow", "fields": {"evaluate.guidance_scale": 2.0}},
            "guidance scale 2 needs a network that knows the null class",
        ),
        ({"teacher": "flow", "maps": False}, "--teacher is for the maps of a run; add --maps"),
    ],
)
def test_what_it_cannot_do_is_one_error(folders, asked, message):
    places = {name: str(folders / asked[name]) for name in ("teacher", "beside") if name in asked}
    request = Request(workdir=folders / "jumps", **{"maps": True, **asked, **places})
    with pytest.raises(ValueError, match=message):
        evaluate(request)
