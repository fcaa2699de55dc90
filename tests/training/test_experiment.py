from functools import partial

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from fewstep.configs.methods import METHODS
from fewstep.diffusion.time_pairs import CURRICULA
from fewstep.eval.sampling import check_sampling
from fewstep.modes.job import check_step
from fewstep.objectives.followers import constant_ema, power_ema, warmed_ema
from fewstep.training.averages import averages
from fewstep.training.construct import RunContext, construct_with_parts
from fewstep.training.experiment import build, build_model, debug_config, rebuild
from fewstep.training.networks import with_network_fields
from fewstep.training.sharding import make_mesh
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.storage.lengths import Length
from tests.training.runs import small_config, small_experiment


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path.name": "liner"}, r"path.name='liner' .* did you mean 'linear'"),
        ({"path.sigma_data": 0.5}, "path.sigma_data is not used by linear"),
        (
            {"objective.time_sampler.mean": 0.0},
            "time_sampler.mean is not used by uniform",
        ),
        ({"optimizer.name": "adamx"}, "optimizer.name='adamx'"),
        ({"optimizer.schedule": "cosinus"}, "did you mean 'cosine'"),
        ({"ema.sample_with": "ema_0.99"}, "did you mean 'ema_0.999'"),
        ({"model.size": "nanos"}, "'nano'"),
        ({"model.second_time": "none"}, "model.second_time"),
        ({"objective.guidance_scale": 2.0, "objective.label_dropout": 0.0}, "null class"),
        ({"objective.guidance_scale": 2.0, "data.num_classes": 0}, "null class"),
        ({"teacher": "runs/x", "start_from_teacher": False}, "teacher is not used by shortcut"),
    ],
)
def test_bad_fields_are_named_with_the_nearest(fields, message):
    with pytest.raises(ValueError, match=message):
        build(small_config(**fields))


def test_unknown_player_optimizer():
    config = small_config()
    config.player_optimizers = {"fake_score": {"b1": 0.0}}
    with pytest.raises(ValueError, match="player_optimizers='fake_score'"):
        build(config)
    config.player_optimizers = {"network": {"learnig_rate": 0.0}}
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        build(config)


def test_a_player_s_own_optimizer_fields():
    config = small_config()
    config.player_optimizers = {"network": {"learning_rate": 0.5}}
    assert build(config).optimizers["network"].learning_rate(0) == 0.5


def test_the_rate_of_a_continued_run_counts_updates_of_the_player():
    fields = {"objective.fake_score_updates": 3, "optimizer.schedule": "cosine"}
    config, lengths = small_config("sim", **fields), (Length(0, 6), Length(6, 12, "hold", 0.5))
    rates = {name: o.learning_rate for name, o in build(config, None, lengths).optimizers.items()}
    assert rates["generator"](2) == rates["fake_score"](6) == pytest.approx(5e-4)


def test_paths_of_densities_start_at_a_standard_normal():
    assert build_model(small_config("dis")).path.prior_scale == 1.0
    assert build_model(small_config("edm")).path.prior_scale is None


def test_several_averages_and_the_one_that_samples():
    fields = {"ema.decays": (0.9, 0.99), "ema.power_stds": (0.1,)}
    _, experiment = small_experiment(**fields)
    assert set(experiment.objective.followers) == {"target", "ema_0.9", "ema_0.99", "power_0.1"}
    assert experiment.sample_with == "ema_0.9"
    assert small_experiment(**fields, **{"ema.sample_with": "network"})[1].sample_with == "network"


@pytest.mark.parametrize("warmup", [False, True])
def test_each_average_has_its_own_width(warmup):
    fields = {"ema.decays": (0.3, 0.9), "ema.power_stds": (0.05, 0.2), "ema.warmup": warmup}
    followers = averages(small_config(**fields).ema, "generator")
    assert all(follower.restarts for follower in followers.values())
    constant = warmed_ema if warmup else constant_ema
    expected = {f"ema_{decay}": constant(decay) for decay in (0.3, 0.9)}
    expected |= {f"power_{std}": power_ema(std) for std in (0.05, 0.2)}
    assert followers.keys() == expected.keys()
    for name, follower in followers.items():
        assert follower.source == "generator"
        for step in (2, 50):
            assert follower.update(1.0, 2.0, step) == expected[name](1.0, 2.0, step)
    assert len({float(update(1.0, 2.0, 50)) for update in expected.values()}) == 4


def test_averages_follow_the_player_that_samples():
    # The fake score is the first of the players.
    _, experiment = small_experiment("dmd", **{"ema.decays": (0.9,), "ema.power_stds": (0.1,)})
    sources = {name: f.source for name, f in experiment.objective.followers.items()}
    assert sources == {"ema_0.9": "generator", "power_0.1": "generator"}
    assert next(iter(experiment.objective.players)) == "fake_score"
    assert experiment.sample_with == "ema_0.9"
    _, experiment = small_experiment("dmd", **{"ema.decays": ()})
    assert experiment.sample_with == "generator"


def test_a_debugged_run_is_small_and_otherwise_the_same():
    fields = {
        "steps": 900,
        "batch_size": 512,
        "data.image_size": 48,
        "model.size": "B",
        "optimizer.warmup_steps": 100,
        "optimizer.learning_rate": 5e-3,
        "evaluate.every": 300,
        "evaluate.steps": (1, 2, 4),
        "evaluate.features": "inception",
        "evaluate.weights": "file",
    }
    config = small_config("flow_matching", **fields)
    before, after = (
        flatten_fields(as_dict(c)) for c in (with_network_fields(config), debug_config(config))
    )
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "steps": 50,
        "batch_size": 64,
        "model.size": "nano",
        "model.patch_size": 6,  # 8 x 8 tokens
        "optimizer.warmup_steps": 10,
        "optimizer.learning_rate": 1e-3,
        "log.every": 10,
        "checkpoint.every": 25,
        "evaluate.every": 0,
        "evaluate.num_samples": 64,
        "evaluate.batch_size": 64,
        "evaluate.steps": [1, 2],
        "pairs.count": 256,
        "pairs.steps": 4,
        "evaluate.features": "none",
        "evaluate.weights": "",
    }


def test_a_debugged_run_keeps_the_fields_that_are_given():
    given = {
        "steps": 200,
        "batch_size": 512,
        "model.size": "S",
        "evaluate.steps": (1, 2, 4),
        "evaluate.features": "inception",
        "log.every": 3,
    }
    config = small_config("flow_matching", **given, **{"optimizer.warmup_steps": 100})
    config.debug_keeps = tuple(given)
    small = debug_config(debug_config(config))
    fields = flatten_fields(as_dict(small))
    assert {name: fields[name] for name in given} == given | {"evaluate.steps": [1, 2, 4]}
    assert (small.optimizer.warmup_steps, small.checkpoint.every) == (40, 25)


@pytest.mark.parametrize(("side", "rows"), [(32, 64), (64, 16)])
def test_a_debugged_run_has_fewer_rows_of_larger_images(side, rows):
    config = small_config("flow_matching", batch_size=256)
    config.data.image_size, config.data.channels = side, 3
    assert debug_config(config).batch_size == rows
    config.batch_size = 8
    assert debug_config(config).batch_size == 8


@pytest.mark.parametrize("method", METHODS)
def test_a_debugged_run_makes_few_pairs_in_few_steps_but_those_that_are_given(method):
    config = small_config(method)
    if "regression_weight" in config.objective:
        config.objective.regression_weight = 0.25
    pairs = debug_config(config).pairs
    assert pairs.count * pairs.steps <= 1024
    config.pairs.update(count=3000, steps=20)
    config.debug_keeps = ("pairs.count", "pairs.steps")
    assert debug_config(config).pairs.to_dict() == {"count": 3000, "steps": 20}
    config.pairs.update(count=5, steps=1)
    config.debug_keeps = ()
    assert debug_config(config).pairs.to_dict() == {"count": 5, "steps": 1}


RANGE = {"objective.guidance_range": (1.0, 4.0)}


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("edm", {"objective.solver.name": "heum"}, r"objective.solver.name='heum' .*'heun'"),
        ("edm", {"objective.spacing.name": "karas"}, r"objective.spacing.name='karas' .*'karras'"),
        ("cd", {"objective.distance.name": "l2"}, r"objective.distance.name='l2' .* did you mean"),
        ("cd", {"objective.weighting": "gap"}, r"objective.weighting='gap' .*'inverse_gap'"),
        ("cd", {"objective.teacher_solver": "hein"}, r"teacher_solver='hein' .*'heun'"),
        ("ct", {"objective.curriculum.name": "double"}, r"curriculum.name='double' .*'doubling'"),
        ("edm", {"prediction.kind": "f"}, r"prediction.kind='f' is not one of"),
        ("edm", {"objective.solver.churn": 1.0}, "solver.churn is not used by heun"),
        ("cd", {"objective.distance.c": 1.0}, "distance.c is not used by squared_l2"),
        ("cd", {"objective.curriculum.first": 2}, "curriculum.first is not used by constant"),
        ("cd", {"objective.curriculum.total_steps": 2}, "curriculum.total_steps is not used"),
        ("ct", {"objective.curriculum.points": 2}, "curriculum.points is not used by square_root"),
        ("ct", {"objective.time_sampler.mean": 0.0}, "time_sampler.mean is not used without"),
        ("edm", {"prediction.kind": "velocity"}, "path.name=ve needs prediction.kind=F"),
        ("flow_matching", {"prediction.sigma_data": 0.5}, "sigma_data is not used by .*velocity"),
        ("edm", {"prediction.sigma_data": -0.5}, "prediction.sigma_data=-0.5 must be positive"),
        ("cd", {"objective.curriculum.points": 1}, "objective.curriculum.points=1"),
        ("ct", {"objective.curriculum.first": 1}, "objective.curriculum.first=1"),
        ("ct", {"objective.curriculum.first": 200}, "1 <= first <= last"),
        ("ict", {"objective.curriculum.first": 0}, "1 <= first <= last"),
        ("ict", {"objective.curriculum.total_steps": 0}, "curriculum.total_steps=0"),
        ("ect", {"objective.total_steps": -1}, "objective.total_steps=-1"),
        ("ect", {"objective.stages": 0}, "stages >= 1"),
        ("cd", {"objective.skip": 0}, "objective.skip=0"),
        ("cd", {"objective.skip": 18}, "objective.skip=18 must be 1 to 17 on a grid of 18 points"),
        ("cd", {"objective.curriculum.points": 10**6}, "points=1000000: a grid has 2 to 20000"),
        ("cd", {"model.second_time": "interval"}, "needs model.second_time=none, not interval"),
        ("ct", {"model.loss_weight": True}, "needs model.loss_weight=False, not True"),
        ("edm", {"model.guidance_input": True}, "needs model.guidance_input=False, not True"),
        ("lcm", {"prediction.kind": "eps"}, "prediction.kind=eps says too little about the data"),
        ("flow_matching", {"prediction.kind": "eps"}, "prediction.kind=eps says too little"),
        ("edm", {"path.sigma_min": 100.0}, "0 <= sigma_min < sigma_max"),
        ("trigflow", {"path.sigma_data": -0.5}, "path.sigma_data=-0.5 must be positive"),
        ("edm", {"objective.time_sampler.std": 0.0}, "time_sampler.std=0.0 must be positive"),
        ("sct", {"objective.tangent_scale": 0.0}, "tangent_scale > 0"),
        (
            "cd",
            {**RANGE, "model.guidance_input": False},
            "needs model.guidance_input=True, not False",
        ),
        ("lcm", {"objective.guidance_range": (4.0, 1.0)}, r"objective.guidance_range=\(4.0, 1.0\)"),
        (
            "lcm",
            {"objective.guidance_range": (1.0, 4.0)},
            "objective.guidance_scale=8.5",
        ),
        ("lcm", {"data.num_classes": 0, "objective.guidance_scale": 8.5}, "null class"),
        ("lcm", {"data.num_classes": 0, "objective.guidance_scale": 1.0} | RANGE, "null class"),
        ("cd", {"objective.sample_times": (100.0,)}, r"sample_times=\(100.0,\) .* t_max=80"),
        ("ect", {"objective.sample_times": (0.5, 0.8)}, "objective.sample_times"),
        ("sct", {"objective.sample_times": (2.0,)}, "path.name=trigflow"),
        ("sct", {"path.name": "linear"}, "needs path.name=trigflow, not linear"),
        ("sct", {"model.loss_weight": False}, "needs model.loss_weight=True, not False"),
        (
            "sct",
            {"objective.guidance_scale": 2.0},
            "guidance_scale is not used by continuous_training|no guidance_scale|guidance_scale",
        ),
        (
            "cd_flow",
            {"prediction.kind": "x_0"},
            "prediction.kind=x_0 does not make a",
        ),
    ],
)
def test_bad_fields_of_denoising_and_consistency_are_named(method, fields, message):
    with pytest.raises(ValueError, match=message):
        build(small_config(method, **fields))


def test_a_curriculum_is_as_long_as_the_run_unless_it_says_otherwise():
    fields = {"name": "square_root", "points": None, "first": 2, "last": 30, "total_steps": None}
    own, longer = (
        construct_with_parts(
            CURRICULA, fields | {"total_steps": total}, "curriculum", RunContext(None, 100)
        )
        for total in (None, 1000)
    )
    assert (int(own(0)), int(own(100)), int(own(500))) == (2, 31, 31)
    assert (int(longer(100)), int(longer(1000))) == (10, 31)


def test_ect_s_stages_are_parts_of_the_run():
    gaps = {}
    for steps in (80, 800):
        _, experiment = small_experiment("ect", steps=steps)
        params = experiment.model.network.init(jax.random.key(0))
        batch = {"x": jnp.zeros((64, 8, 8, 1)), "label": jnp.zeros(64, jnp.int32)}
        loss = experiment.objective.players["network"].loss
        metrics = loss(params, {"network": params}, batch, jax.random.key(0), jnp.int32(79))[1]
        gaps[steps] = float(metrics["noise_gap"].total)
    # The last of eight stages, and the first: the gap is about 2^7 times smaller.
    assert 30 < gaps[800] / gaps[80] < 200


def test_the_tangent_warms_up_over_the_run_unless_it_says_otherwise():
    losses = {}
    for warmup in (None, 80, 800):
        _, experiment = small_experiment("sct", steps=80, **{"objective.tangent_warmup": warmup})
        shapes = jax.eval_shape(experiment.model.network.init, jax.random.key(0))
        params = jax.tree.map(lambda a: jnp.full(a.shape, 0.02), shapes)
        batch = {"x": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
        loss = experiment.objective.players["network"].loss
        losses[warmup] = loss(params, {}, batch, jax.random.key(0), jnp.int32(40))[0].mean()
    assert losses[None] == losses[80] != losses[800]


@pytest.mark.parametrize(
    ("method", "scale", "message"),
    [
        ("cd", 2.0, r"trained at guidance scale 1 only, not 2; .*guidance_range"),
        ("lcm", 20.0, r"guidance scale 20 is outside 3 to 15, .*guidance_range"),
        ("edm", 2.0, None),
        ("lcm", 4.0, None),
    ],
)
def test_only_trained_guidance_scales_are_sampled(method, scale, message):
    fields = {"evaluate.guidance_scale": scale, "evaluate.steps": (1, 2)}
    config, experiment = small_experiment(method, **fields)
    if message is None:
        check_sampling(experiment, config, make_mesh())
    else:
        with pytest.raises(ValueError, match=message):
            check_sampling(experiment, config, make_mesh())


@pytest.fixture
def fused(monkeypatch):
    """Pretends that the GPU has fused attention, which has no forward-mode derivative."""
    plain = partial(jax.nn.dot_product_attention, implementation="xla")

    @jax.custom_vjp
    def opaque(query, key, value):
        return plain(query, key, value)

    def backward(qkv, slope):
        return jax.vjp(plain, *qkv)[1](slope)

    opaque.defvjp(lambda *qkv: (opaque(*qkv), qkv), backward)

    def attention(query, key, value, *, scale, implementation):
        return (opaque if implementation == "cudnn" else plain)(query, key, value)

    monkeypatch.setattr("fewstep.models.layers.has_fused_attention", lambda device: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)


def test_fused_attention_is_refused_by_methods_that_differentiate_forwards(fused):
    def check(method, attention):
        fields = {"model.attention": attention, "model.dtype": "bfloat16"}
        config, experiment = small_experiment(method, **fields)
        check_step(experiment, config, make_mesh(), {})

    check("flow_matching", "cudnn")
    check("sct", "xla")
    for attention in ("cudnn", "auto"):
        with pytest.raises(ValueError, match=r"jax.jvp .* for a DiT use model.attention=xla"):
            check("sct", attention)


def test_a_run_with_fused_attention_samples_where_there_is_none():
    config = small_config("flow_matching", **{"model.attention": "cudnn"})
    with pytest.raises(ValueError, match="attention=cudnn needs a GPU"):
        build(config)
    assert rebuild(config, "run").objective.denoises
    assert config.model.attention == "cudnn"


def test_a_record_without_an_objective_is_of_no_run():
    config = small_config()
    config.objective = ConfigDict()
    with pytest.raises(ValueError, match=r"RUN holds no config of a run: it has no objective.name"):
        rebuild(config, "RUN")
