"""A sampler of a user's density and its student are trained, evaluated and sampled like any run."""

import hashlib
import shutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.configs import density
from fewstep.densities import user_code
from fewstep.eval import smc
from fewstep.eval.checks import check_evaluation, reason_to_skip
from fewstep.eval.evaluate import evaluator
from fewstep.eval.report.page import results_page
from fewstep.eval.report.runs import load_runs
from fewstep.modes.request import Request, permit_code
from fewstep.modes.resolve import resolve_and_load
from fewstep.training.experiment import build
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import workdir

TRAIN, SAMPLE, EVALUATE = (
    import_module(f"fewstep.modes.{name}") for name in ("train_run", "sample", "evaluate")
)
SAMPLES = 48
CODE = """import jax.numpy as jnp

dim, scale, log_z = 3, 2.0, 1.5

def log_density(x):
    return log_z - 0.5 * jnp.sum((x / 2) ** 2) - 1.5 * jnp.log(8 * jnp.pi)

def sample(rng, count):
    return 2 * rng.standard_normal((count, dim))
"""


def small_config(method="dis", **fields):
    config = density.get_config(method)
    config.steps, config.batch_size, config.optimizer.warmup_steps = 2, 32, 0
    config.model.width, config.model.depth = 8, 1
    config.evaluate.steps, config.evaluate.num_samples = (64,), SAMPLES
    config.evaluate.batch_size = 16
    if method == "dis":
        config.objective.path_steps = 3
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    permit_code(f"density:{path}")
    return path


@pytest.fixture(scope="module")
def teacher(code, tmp_path_factory):
    """The folder of a trained and evaluated sampler."""
    folder = tmp_path_factory.mktemp("sampler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(folder / "data"))
        config = small_config(**{"data.name": f"density:{code}"})
        TRAIN.train_run(Request(config=config, workdir=folder / "run"))
    return folder / "run"


def test_an_evaluation_has_weights_distances_floor_and_prior(teacher, tmp_path):
    (shown,) = load_runs([teacher])
    for steps, result in shown.results.items():
        metrics = result["metrics"]
        assert {"wasserstein_1", "energy", "deviation_ratio", "elbo", "ess"} <= metrics.keys()
        # The prior is the density, and a fresh network is exact.
        assert metrics["log_z"] == pytest.approx(1.5, abs=0.2) and steps == 64
        assert metrics["log_z_bias"] == pytest.approx(metrics["log_z"] - 1.5)
        for row in ("real", "prior"):
            assert 0.1 < result[row]["wasserstein_1"] < 3.0
        assert shown.images[steps].std() == pytest.approx(2.0, rel=0.25)
    results_page(tmp_path / "page.html", title="points", runs=load_runs([teacher]))
    page = (tmp_path / "page.html").read_text()
    assert "untrained prior" in page and "real images" in page and "W1" in page


def test_code_in_a_record_does_not_run_unless_it_is_named(teacher, code, monkeypatch):
    monkeypatch.setattr(user_code, "_permitted", set())
    with pytest.raises(ValueError, match=f"runs only if you name it: add .*density:{code}"):
        SAMPLE.sample(Request(workdir=teacher, seeds=(0,)))
    permit_code(f"density:{code}")
    SAMPLE.sample(Request(workdir=teacher, seeds=(0,)))
    (arrays,) = (teacher / "samples").glob("*.npz")
    assert np.load(arrays)["x"].shape == (1, 3)


@pytest.mark.some_days(2)
def test_a_student_learns_from_rollouts_without_data(teacher, code, tmp_path):
    fields = {
        "data.name": f"density:{code}",
        "teacher": str(teacher),
        "objective.curriculum.points": 5,
        "evaluate.steps": (1,),
    }
    config = small_config("consistency_sampler", **fields)
    TRAIN.train_run(Request(config=config, workdir=tmp_path / "run", given=tuple(fields)))
    record = workdir.load_config(tmp_path / "run")
    assert record.model.score_input and record.prediction.kind == "tilt"
    assert record.model.score_precision == 100.0
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    assert workdir.recorded_identity(tmp_path / "run").data == {"density_sha256": digest}
    (shown,) = load_runs([tmp_path / "run"])
    assert shown.results[1]["metrics"]["wasserstein_1"] < 3.0


@pytest.mark.some_days(3)
def test_further_rows_of_an_evaluation(teacher, code, tmp_path):
    """A sampler that is exact stays exact, and each row says what it took."""
    pytest.importorskip("blackjax")
    config = workdir.load_config(teacher)
    config.evaluate.rows, config.evaluate.steps = ("weighted", "hmc", "smc"), (1, 2)
    folder = shutil.copytree(teacher, tmp_path / "run")
    EVALUATE.evaluate(Request(config=config, workdir=folder))
    (shown,) = load_runs([folder])
    result = shown.results[2]
    assert result["metrics"]["gradients"] == 3.0  # of Heun's two steps, the last Euler's
    rows = result["rows"]
    assert rows["weighted"]["ess"] > 0.9 and rows["weighted"]["log_z_bias"] == pytest.approx(
        0.0, abs=0.1
    )
    assert (rows["weighted"]["evaluations"], rows["weighted"]["gradients"]) == (12.0, 12.0)
    assert (rows["hmc"]["evaluations"], rows["hmc"]["gradients"]) == (3.0, 93.0)
    assert rows["smc"]["evaluations"] == 0.0 and rows["smc"]["gradients"] % 17 == 0.0
    assert rows["smc"]["log_z_bias"] == pytest.approx(0.0, abs=0.5)
    for row in rows.values():
        assert 0.1 < row["wasserstein_1"] < 3.0
    results_page(tmp_path / "page.html", title="points", runs=load_runs([folder]))
    page = (tmp_path / "page.html").read_text()
    for title in ("importance-weighted", "after ten HMC steps", "tempered SMC", "accepted"):
        assert title in page


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.rows": ("weigthed",)}, "evaluate.rows.*did you mean 'weighted'"),
        (
            {"evaluate.rows": ("weighted",), "data.name": "density:phi4-17-0.2-0"},
            "at most 256 dimensions, and density:phi4-17-0.2-0 has 289; leave it out",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused_before_compute(fields, message):
    config, dataset = resolve_and_load(small_config(**{**fields, "model.width": 300}))
    with pytest.raises(ValueError, match=message):
        check_evaluation(build(config), dataset, config, make_mesh())


def test_smc_without_blackjax_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smc, "find_spec", lambda name: None)
    config, dataset = resolve_and_load(small_config(**{"evaluate.rows": ("smc",)}))
    with pytest.raises(ValueError, match="evaluate.rows=smc needs blackjax; install it with: pip"):
        check_evaluation(build(config), dataset, config, make_mesh())


@pytest.fixture
def changed(code, tmp_path):
    """Another file of the same density."""
    path = tmp_path / "changed.py"
    path.write_text(CODE.replace("1.5 * jnp.log", "1.25 * jnp.log"))
    permit_code(f"density:{path}")
    return path


def test_a_file_that_has_changed_is_another_density(teacher, changed, tmp_path):
    """When a run goes on, when it is sampled, and between teacher and student."""
    config = small_config(**{"data.name": f"density:{changed}"})
    with pytest.raises(ValueError, match="data set of .* has changed since the run began"):
        TRAIN.train_run(Request(config=config, workdir=teacher))
    fields = {"data.name": f"density:{changed}"}
    with pytest.raises(ValueError, match="density_sha256 .* recorded"):
        SAMPLE.sample(Request(workdir=teacher, fields=fields))
    fields["teacher"] = str(teacher)
    student = small_config("consistency_sampler", **fields)
    with pytest.raises(ValueError, match="was trained on another density than the file changed"):
        TRAIN.train_run(
            Request(
                config=student,
                workdir=tmp_path / "run",
                given=tuple(fields),
                config_of_method=lambda method: small_config(method, **fields),
            )
        )


SAMPLER = """import jax.numpy as jnp

dim = 3
path = {"name": "vp_ddpm", "beta_min": 0.1, "beta_max": 10.0}

def control(x, t):
    return -jnp.sqrt(0.1 + 9.9 * t[:, None]) * x / 2
"""


@pytest.mark.in_turn("method", 2)
@pytest.mark.parametrize("method", ["consistency_sampler", "direct"])
def test_a_sampler_in_a_file_teaches(method, code, tmp_path):
    path = tmp_path / "sampler.py"
    path.write_text(SAMPLER)
    fields = {
        "data.name": f"density:{code}",
        "teacher": str(path),
        "evaluate.steps": (1,),
        "pairs.count": 64,
        "path.name": "vp_ddpm",
        "path.beta_max": 10.0,
        "prediction.kind": "tilt",
    }
    config = small_config(method, **fields)
    request = Request(config=config, workdir=tmp_path / "run", given=tuple(fields))
    train = lambda: TRAIN.train_run(request)
    with pytest.raises(ValueError, match="runs only if you name it: add --config.teacher="):
        train()
    permit_code(config.data.name, config.teacher)
    train()
    record = workdir.recorded_identity(tmp_path / "run")
    assert record.teacher["fingerprint"] == hashlib.sha256(path.read_bytes()).hexdigest()
    if method == "direct":
        return
    path.write_text(SAMPLER + "# another\n")
    with pytest.raises(ValueError, match="the teacher of .* has changed since the run began"):
        train()
    # The student samples without its teacher's code.
    user_code._permitted.discard(path.resolve())
    SAMPLE.sample(Request(workdir=tmp_path / "run", seeds=(0,)))


def test_a_method_that_reads_its_teachers_parameters_cannot_learn_from_a_file(code, tmp_path):
    path = tmp_path / "sampler.py"
    path.write_text(SAMPLER)
    permit_code("", str(path))
    config = small_config("parameter_matching", **{"data.name": f"density:{code}"})
    config.teacher = str(path)
    config.path.name, config.path.beta_max, config.prediction.kind = "vp_ddpm", 10.0, "tilt"
    with pytest.raises(ValueError, match="which has no parameters, and parameter_matching reads"):
        TRAIN.train_run(Request(config=config, workdir=tmp_path / "run", given=()))


def test_a_density_without_samples_is_trained_but_not_compared():
    config, dataset = resolve_and_load(small_config(**{"data.name": "density:phi4", "debug": True}))
    assert dataset is None
    experiment = build(config)
    check_evaluation(experiment, dataset, config, make_mesh())
    assert "density:phi4 does not have" in reason_to_skip(dataset, config)
    with pytest.raises(FileNotFoundError, match="no exact samples to train on"):
        resolve_and_load(
            small_config("flow_matching", **{"data.name": "density:phi4", "debug": True})
        )


@pytest.mark.parametrize(("method", "rate"), [("dis", 5e-3), ("dds", 5e-3), ("scds", 2e-3)])
def test_the_share_and_the_rate_with_which_each_method_was_measured(method, rate):
    """With a share of 0 they throw paths away; `scds` diverges at the rate of the others."""
    config = density.get_config(method)
    assert config.model.score_precision == 100.0
    assert config.optimizer.learning_rate == rate


def test_modes_are_counted_without_exact_samples(tmp_path):
    """Of a network that is zero, which samples draws of the prior."""
    fields = {"data.name": "density:phi4-4-0.3-0.02", "model.odd": True}
    config, _ = resolve_and_load(small_config(**fields, **{"model.coordinate_width": 2}))
    experiment = build(config)
    params = jax.tree.map(jnp.zeros_like, experiment.model.network.init(jax.random.key(0)))
    (result,) = evaluator(experiment, None, config, make_mesh(), tmp_path)(params, 0)
    assert result["metrics"]["mode_distance"] < 0.3 and result["metrics"]["mode_entropy"] > 0.7
    assert "wasserstein_1" not in result["metrics"] and "elbo" in result["metrics"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.name": "density:mw52"}, "model.width=8 is below the 50 dimensions.*coordinate"),
        (
            {"data.name": "density:gmm40", "model.odd": True},
            "model.odd=True needs a density with rho.*density:gmm40 is none",
        ),
        (
            {"data.name": "mixture:ring", "model.odd": True, "model.score_input": False},
            "model.odd=True needs a density.*mixture:ring is none",
        ),
        ({"data.name": "mixture:ring"}, "model.score_input=True needs a density"),
        ({"path.name": "linear", "path.beta_max": None}, "path.name=vp_ddpm or vp_discrete"),
        ({"data.image_size": 8}, "has points; leave both at 0"),
        ({"data.name": "density:nothing"}, "density:nothing"),
    ],
)
def test_what_samplers_cannot_be_is_refused_before_compute(fields, message):
    with pytest.raises(ValueError, match=message):
        config, _ = resolve_and_load(small_config(**fields))
        build(config)
