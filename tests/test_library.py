"""The Python interface gives what the command line gives: samples, configs and messages."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from absl.testing import flagsaver

import fewstep
import main
from fewstep import library
from fewstep.modes.request import Request
from fewstep.modes.sample import sample
from fewstep.training.storage.mirror import mirrored
from fewstep.training.storage.workdir import recorded_identity
from tests.training.runs import save_run

QUIET = """
import os, signal, sys
before = dict(os.environ), signal.getsignal(signal.SIGINT), list(sys.path)
import fewstep
assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), sys.path)
assert {"load", "train", "config"} <= {*dir(fewstep)} and fewstep.__version__
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of random parameters, of ten classes."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    save_run(run, "shortcut", steps=(2, 5), **{"evaluate.batch_size": 16})
    return run


@pytest.fixture(scope="module")
def run(folder):
    return fewstep.load(folder)


def test_a_run_is_loaded_from_a_bucket(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "data"))
    with mirrored(Path("memory://bucket/tiny"), tmp_path / "trained", writes=True) as mirror:
        shutil.copytree(folder, mirror)
    found = fewstep.load("memory://bucket/tiny")
    assert found.step == 5 and found.folder.is_relative_to(tmp_path / "data")


def sampled_by_the_command_line(folder, out, **fields):
    sample(Request(workdir=folder, out=out, **fields))
    with np.load(out) as made:
        return made["x"], made["y"]


def test_importing_starts_nothing():
    printed = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert not printed.stderr
    assert not {"jax", "numpy", "absl", "tqdm"} & {*printed.stdout.split()}


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"labels": [3] * 5, "seed": 2}, {"labels": (3,), "seeds": (2, 3, 4, 5, 6)}),
        ({"labels": np.array([7, 0, 9]), "steps": 4}, {"labels": (7, 0, 9), "seeds": (0, 1, 2)}),
        ({"count": 20, "seed": 1, "steps": 2}, {"seeds": tuple(range(1, 21))}),
        ({"labels": ["2-5"]}, {"labels": (2, 3, 4, 5), "seeds": (0, 1, 2, 3)}),
    ],
)
def test_samples_are_those_of_the_command_line(run, folder, tmp_path, asked, given):
    expected, labels = sampled_by_the_command_line(
        folder, tmp_path / "x.npz", steps=asked.get("steps", 1), **given
    )
    images = run.sample(**asked)
    assert images.dtype == np.uint8 and images.shape == (len(labels), 8, 8, 1)
    np.testing.assert_array_equal(images, expected)


def test_another_checkpoint_and_network_are_loaded(folder, tmp_path):
    other = fewstep.load(folder, step=2, network="network")
    assert (other.step, other.network) == (2, "network")
    asked = {"checkpoint": 2, "network": "network", "seeds": (0,)}
    expected, _ = sampled_by_the_command_line(folder, tmp_path / "x.npz", **asked)
    np.testing.assert_array_equal(other.sample(count=1), expected)


def test_sampling_compiles_once_for_each_number_of_steps_and_batch(folder, caplog):
    run = fewstep.load(folder)
    with jax.log_compiles():
        for labels in ([1], [2] * 5, range(10)):
            run.sample(labels, steps=2)
        run.sample([0], steps=2, batch_size=9)  # of eight devices: 16
        assert caplog.text.count("Compiling jit(sample)") == 1
        run.sample([0], steps=2, batch_size=8)
    assert caplog.text.count("Compiling jit(sample)") == 2


def test_each_guidance_scale_has_samples_of_its_own(tmp_path):
    run = fewstep.load(save_run(tmp_path / "run", "flow_matching", **{"evaluate.batch_size": 4}))
    first, other, again = (run.sample(count=4, steps=2, guidance=g) for g in (1.0, 3.0, 1.0))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_is_loaded_is_what_was_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(library, "load_run", asked.append)
    monkeypatch.setattr(library, "Run", lambda loaded: loaded)
    fewstep.load("run", step=5, network="network", solver="heun", codec_weights="codec.npz")
    (request,) = asked
    assert (request.checkpoint, request.network, request.solver) == (5, "network", "heun")
    assert request.workdir == Path("run") and request.fields == {"codec.weights": "codec.npz"}


@pytest.mark.some_days(3)
def test_a_run_starts_from_another(folder, tmp_path):
    config = fewstep.load(folder).config.copy_and_resolve_references()
    with config.unlocked():
        config.steps, config.optimizer.learning_rate, config.evaluate.steps = 1, 1e-30, ()
    config.data.name = "digits"
    run = fewstep.train(config, tmp_path / "run", start=str(folder))
    before = fewstep.load(folder, network="network")
    after = fewstep.load(tmp_path / "run", network="network")
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert recorded_identity(run.folder).started_from["step"] == 5


def test_settings_of_the_caller_stay(folder, monkeypatch):
    seen, load_run = [], library.load_run
    settings = lambda: (jax.config.jax_softmax_custom_jvp, logging.get_verbosity())
    monkeypatch.setattr(
        library, "load_run", lambda asked: seen.append(settings()) or load_run(asked)
    )
    before = settings()
    jax.config.update("jax_softmax_custom_jvp", False)
    try:
        fewstep.load(folder).sample([1])
        assert seen == [(True, logging.FATAL)] and settings() == (False, before[1])
    finally:
        jax.config.update("jax_softmax_custom_jvp", before[0])


def test_denoising_is_the_prediction_of_the_network(run):
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.2, 0.5, 0.9])
    labels = jnp.array([1, -1, 4])
    expected = run.model.endpoints(run.params, x, t, {"label": labels}).x_0
    np.testing.assert_allclose(run.denoise(x, t, labels), expected, rtol=1e-4, atol=1e-5)
    alone = run.denoise(x, 0.5)
    np.testing.assert_allclose(alone[1], run.denoise(x, t, labels)[1], rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: run.denoise(x, t, labels).sum())(x)
    assert gradient.shape == x.shape and np.isfinite(gradient).all()
    assert run.path.t_max == run.model.path.t_max and run.config.method == "shortcut"


@pytest.mark.parametrize("labels", [99, -5, [1, 10, 2], 3.7, [0.0, 1.0, 2.0], "3"], ids=str)
def test_denoising_refuses_labels_that_are_no_class(run, labels):
    x = np.zeros((3, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="must be integers from -1, the null class, to 9"):
        run.denoise(x, 0.5, labels)


def test_denoising_refuses_integer_images(run):
    with pytest.raises(ValueError, match=r"x_t is uint8; give floats around \[-1, 1\]"):
        run.denoise(np.zeros((3, 8, 8, 1), np.uint8), 0.5)


def test_labels_of_denoising_may_be_traced(run):
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    expected = run.denoise(x, 0.5, [1, 2, 9])
    for labels in (np.array([1, 2, 9]), np.array([1, 2, 9], np.uint8)):
        made = jax.jit(lambda labels: run.denoise(x, 0.5, labels))(labels)
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
        made = jax.jit(lambda x, given=labels: run.denoise(x, 0.5, given))(x)
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must be integers"):
        jax.jit(lambda labels: run.denoise(x, 0.5, labels))(np.ones(3, np.float32))


def test_a_network_of_guidance_and_its_interval_denoises(tmp_path):
    fields = {"model.guidance_input": True, "model.guidance_interval": True}
    fields |= {"model.second_time": "interval", "objective.guidance_range": (1.0, 4.0)}
    fields |= {"objective.guidance_interval": (0.2, 0.7), "objective.guidance_scale": 2.0}
    folder = save_run(tmp_path / "run", "improved_mean_flow", **fields)
    run = fewstep.load(folder)
    x, t = np.ones((2, 8, 8, 1), np.float32), jnp.full(2, 0.5)
    given = {"guidance_scale": 2.0, "guidance_start": 0.2, "guidance_end": 0.7}
    condition = {name: jnp.full(2, value) for name, value in given.items()}
    condition["label"] = jnp.full(2, -1)
    expected = run.model.endpoints(run.params, x, t, condition).x_0
    np.testing.assert_allclose(run.denoise(x, 0.5), expected, rtol=1e-4, atol=1e-5)


def test_a_config_is_that_of_the_command_line(monkeypatch):
    fields = {"optimizer.learning_rate": 3, "path.name": "trigflow", "evaluate.steps": [1, 4]}
    flags = ["--config.optimizer.learning_rate=3", "--config.path.name=trigflow"]
    command = ["main.py", "--config=configs/digits.py:shortcut", *flags]
    command += ["--config.evaluate.steps=(1,4)", "--config.debug=True", "--workdir=runs/x"]
    asked = []
    monkeypatch.setattr(library, "train_run", asked.append)
    monkeypatch.setattr(library, "write_run_page", lambda folder: None)
    monkeypatch.setattr(library, "load", lambda folder: None)
    fewstep.train(fewstep.config("configs/digits.py:shortcut", debug=True, **fields), "runs/x")
    monkeypatch.setattr("sys.argv", command)
    with flagsaver.flagsaver():
        main.parse_flags(command)
        expected = main.read_request()
        (request,), functions = asked, {"config_of_method": None, "config": None}
        assert request.config.to_json() == expected.config.to_json()
        assert request._replace(**functions) == expected._replace(**functions)
        of_method = request.config_of_method("edm"), expected.config_of_method("edm")
        assert of_method[0].to_json() == of_method[1].to_json()


def test_a_dictionary_replaces_those_fields_of_a_group_that_it_has():
    given = {"evaluate": {"num_samples": 5}, "objective": {"solver": {"name": "euler"}}}
    players = {"network": {"learning_rate": 1e-4}}
    config = fewstep.config("configs/digits.py:edm", **given, player_optimizers=players)
    default = fewstep.config("configs/digits.py:edm").values
    fields = config.values
    assert fields.evaluate.num_samples == 5 and fields.evaluate.steps == default.evaluate.steps
    assert fields.objective.solver.name == "euler"
    assert fields.player_optimizers.to_dict() == players
    assert {*config.given} == {"evaluate.num_samples", "objective.solver.name", "player_optimizers"}


def test_values_of_numpy_and_paths_are_those_of_python(tmp_path):
    given = {"optimizer.learning_rate": np.float64(1e-3), "evaluate.steps": [np.int64(2)]}
    given |= {"data.dir": tmp_path, "log": {"to": ("csv",)}, "ema.decays": np.array([0.5])}
    name = Path("configs", "digits.py:sim")
    config = fewstep.config(name, steps=np.int64(7), teacher=Path("runs/edm"), **given)
    fields = config.values
    assert (fields.steps, fields.teacher, fields.data.dir) == (7, "runs/edm", str(tmp_path))
    assert (fields.optimizer.learning_rate, fields.evaluate.steps) == (1e-3, (2,))
    assert fields.ema.decays == (0.5,) and config.name == str(name)
    assert not any(isinstance(value, np.generic | Path) for value in config.given.values())


def test_a_config_comes_with_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert fewstep.config("configs/digits.py:edm").values.method == "edm"
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "digits.py"
    own.write_text(
        "from ml_collections import ConfigDict\ndef get_config(method): return missing\n"
    )
    with pytest.raises(ValueError, match="digits.py line 2: NameError"):
        fewstep.config("configs/digits.py:edm")  # one that is here comes first


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("configs/digit.py", {}, "configs/digit.py does not exist; did you mean --config=configs/"),
        ("configs/digits.py:shortcat", {}, "^method='shortcat' is not .*n 'shortcut'.$"),
        (
            "configs/digits.py",
            {"optimizer.lr": 1e-3},
            "--config.optimizer.lr is not a field; did you mean --config.optimizer.learning_rate?",
        ),
        ("configs/digits.py", {"steps": "many"}, "--config.steps='many' must be a whole number"),
        ("configs/digits.py", {"steps": -1}, "steps=-1 must be"),
        ("configs/digits.py", {"method": "edm"}, "did you mean --config=.*digits.py:edm"),
        ("configs/digits.py", {"optimizer": 3}, "optimizer is a group of fields"),
        ("configs/digits.py", {"optimizer": {"lr": 3}}, "optimizer.lr is not a field; did you"),
    ],
)
def test_a_wrong_config_is_refused_in_the_words_of_the_command_line(name, fields, message):
    with pytest.raises(ValueError, match=message):
        fewstep.config(name, **fields)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"labels": [10]}, "--labels=10 is out of range; this model has 0 to 9"),
        ({"labels": ["cat"]}, "--labels=cat: the record of this run has no class names"),
        ({"labels": [1, 2], "count": 3}, "count=3, but there are 2 labels"),
        ({"labels": []}, "0 samples are none"),
        ({"labels": "37"}, r"labels='37' is one label; give a list .* labels=\['37'\] \* 16"),
        ({"labels": 3}, r"labels=3 is one label; give a list .* labels=\[3\] \* 16"),
        ({"labels": np.int64(3)}, "is one label"),
        ({"labels": ["0-4", 7], "count": 2}, "count=2, but there are 6 labels"),
        ({"steps": 0}, "--steps=0 must be 1 or more"),
        ({"steps": 3}, "--steps=3"),
        ({"seed": -1}, "--seeds=-1 must be 0 or more"),
        ({"seed": 2**31 - 5}, "is too large"),
        ({"guidance": float("nan")}, "is not finite"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_sampled_is_refused(run, asked, message):
    with pytest.raises(ValueError, match=message):
        run.sample(**asked)


def test_a_folder_that_is_no_run_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        fewstep.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="--network='ema_0.5' is not one of ema_0.999"):
        fewstep.load(folder, network="ema_0.5")
    with pytest.raises(ValueError, match="step 3"):
        fewstep.load(folder, step=3)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    name = "lode"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        getattr(fewstep, name)
