"""The parts of --mode=export --format=web: noise, samplers, files. A browser is in tests/parity."""

import importlib.util
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from fewstep.samplers.sde import noise_like
from fewstep.training.exports import web as WEB
from fewstep.training.exports.exported import Exported
from fewstep.training.exports.onnx import Sampling, abstract_inputs, draws_noise
from fewstep.training.generate import initial_noise
from fewstep.training.storage.identity import Identity
from tests.training.runs import small_experiment

NODE = shutil.which("node")
SEEDS = (0, 3, 2**31 - 1)
GIVEN = {"sampling_steps": (3, 5), "guidance_scale": 2.5, "guidance_asked": True}
GUIDED = {"objective.guidance_range": (1.0, 2.0), "model.guidance_input": True}


def exported(method, asked_of=(), **fields):
    """A network of random parameters to export. asked_of: fields of `Exported`."""
    config, experiment = small_experiment(method, **fields)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(experiment.model.network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    made = Exported(config, experiment, params, 5, Identity("5eed", {}), None)
    return made._replace(**dict(asked_of))


@pytest.mark.skipif(NODE is None, reason="Node runs the page's JavaScript without a browser")
def test_the_page_draws_the_noise_of_seeds():
    shape, key = (3, 5, 7), WEB.settings(exported("shortcut"), [])["key"]
    eps, keys = initial_noise(0, np.array(SEEDS, np.int32), shape)
    expected = [eps, *(noise_like(eps, keys, index) for index in range(2))]
    script = f"""
        import {{ foldIn, normal, start }} from "{WEB.PAGE.as_uri()}/noise.js";
        const drawn = {[*SEEDS]}.map((seed) => {{
          const {{ noise, later }} = start({key}, seed, 105);
          const draws = [0, 1].map((index) => normal(foldIn(later, index), 105));
          return [noise, ...draws].map((x) => [...x]);
        }});
        console.log(JSON.stringify(drawn));"""
    command = [NODE, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    drawn = np.array(json.loads(done.stdout)).swapaxes(0, 1).reshape(3, len(SEEDS), *shape)
    np.testing.assert_allclose(drawn, np.stack(expected), atol=1e-6)


def test_a_graph_takes_the_noise_that_its_sampler_draws():
    given = exported("ect")
    assert draws_noise(given, Sampling(3, 1.0)) and not draws_noise(given, Sampling(1, 1.0))
    shapes = [each.shape for each in abstract_inputs(given, Sampling(3, 1.0), 5)]
    assert shapes == [(5, 8, 8, 1), (5,), (3, 5, 8, 8, 1)]


@pytest.mark.parametrize(
    ("method", "fields", "asked", "found"),
    [
        ("shortcut", {}, {}, [(1, 1.0), (2, 1.0), (4, 1.0)]),
        ("sim_flow", {}, {}, [(1, 1.0)]),
        ("shortcut", GUIDED, {"sampling_steps": (2,)}, [(2, 1.0), (2, 1.5), (2, 2.0)]),
        ("flow_matching", {}, GIVEN, [(3, 2.5), (5, 2.5)]),
    ],
)
def test_a_page_offers_what_the_method_samples_in(method, fields, asked, found):
    assert [tuple(each) for each in WEB.offered(exported(method, asked, **fields))] == found


def test_steps_that_a_run_does_not_sample_in_are_refused():
    given = exported("shortcut", {"sampling_steps": (1, 3)})
    with pytest.raises(ValueError, match="--steps=3: a shortcut model samples in a power of two"):
        WEB.offered(given)


@pytest.fixture
def runtime(tmp_path):
    """A folder as `npm install onnxruntime-web` makes it, with other contents."""
    folder = tmp_path / "npm" / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in WEB.RUNTIME_FILES:
        (folder / name).write_text(name)
    return tmp_path / "npm"


def test_a_page_is_whole(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(WEB, "network_files", lambda exported, samplings: {})
    contents = WEB.web_contents(exported("shortcut", {"runtime": runtime}))
    for name, write in contents.files.items():
        write(tmp_path / "out" / name)
    runtime_files = {f"runtime/{name}" for name in WEB.RUNTIME_FILES}
    assert {*contents.files} == {*WEB.PAGE_FILES, WEB.SETTINGS} | runtime_files
    text = {name: (tmp_path / "out" / name).read_text() for name in WEB.PAGE_FILES}
    page = text["index.html"]
    assert {*re.findall(r'(?:src|href)="([^"]+)"', page)} == {"page.css", "page.js", "data:,"}
    assert {*re.findall(r'from "\./([^"]+)"', text["page.js"])} <= {*contents.files}
    assert not re.search(r"https?://(?!localhost)", "".join(text.values()))
    ids = {*re.findall(r'id="(\w+)"', page)}
    assert {*re.findall(r'element\("(\w+)"\)', text["page.js"])} == ids
    settings = json.loads((tmp_path / "out" / WEB.SETTINGS).read_text())
    assert settings["classes"] == [*map(str, range(10))] and settings["shape"] == [8, 8, 1]
    graphs = [sampler["graph"] for sampler in settings["samplers"]]
    assert graphs == [f"network/steps_{steps}-guidance_1.onnx" for steps in (1, 2, 4)]
    assert "python -m http.server" in contents.loading


@pytest.mark.parametrize("place", ["", "node_modules/onnxruntime-web", "node_modules"])
def test_any_folder_of_npm_is_found(runtime, place):
    found = WEB.find_runtime(runtime / place)
    assert {path.name for path in found.iterdir()} == {*WEB.RUNTIME_FILES}


def test_a_missing_runtime_says_what_to_type(runtime):
    given = exported("shortcut")
    with pytest.raises(ValueError, match=r"--runtime is missing.*`npm install onnxruntime-web`"):
        WEB.web_contents(given)
    next(runtime.rglob("*.wasm")).unlink()
    message = rf"--runtime={runtime} has no .*\.wasm of onnxruntime-web; type `npm install onnx"
    with pytest.raises(ValueError, match=message):
        WEB.web_contents(given._replace(runtime=runtime))


def test_a_page_shows_pictures_alone(runtime):
    given = exported("shortcut")
    points = given.experiment.space._replace(image=None, name="points")
    given = given._replace(experiment=given.experiment._replace(space=points), runtime=runtime)
    with pytest.raises(ValueError, match="shows pictures, and this run makes points"):
        WEB.web_contents(given)
