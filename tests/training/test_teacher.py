import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.training.compiled_step import Training, create_state
from fewstep.training.experiment import build, rebuild
from fewstep.training.location import locate_teacher, pin_teacher
from fewstep.training.loop import train
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sharding import tree_shardings
from fewstep.training.sources import Stream
from fewstep.training.state import replace_parts
from fewstep.training.storage import checkpoint, restore, workdir
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.teacher import (
    adopt,
    check_teacher,
    load_teacher,
    teacher_identity,
)
from tests.modes.recorded import random_network
from tests.training.runs import (
    largest_difference,
    perturb,
    save_run,
    small_config,
    small_experiment,
    synthetic_batches,
)
from tests.training.test_sharding import mesh_of

pytestmark = pytest.mark.usefixtures("no_blocks")


def mesh():
    return mesh_of(1, 1)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A flow_matching run with checkpoints of steps 3 and 5."""
    return save_run(tmp_path_factory.mktemp("flow"), "flow_matching", steps=(3, 5))


@pytest.fixture(scope="module")
def edm(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("edm"), "edm")


@pytest.fixture(scope="module")
def trigflow(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trigflow"), "trigflow")


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("ddpm"), "ddpm", **{"prediction.kind": "v"})


def load(method, teacher, **fields):
    config, experiment = small_experiment(method, teacher=teacher, **fields)
    return experiment, load_teacher(config, experiment, mesh())


def read_saved(folder, name, step=None):
    """A run's network by name, as Orbax reads it without a target tree."""
    with restore.read_checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        arguments = checkpoint.ocp.args.Composite(**{name: checkpoint.ocp.args.StandardRestore()})
        return checkpoints.restore(step, args=arguments)[name]


@pytest.mark.parametrize(
    ("field", "folder", "step"), [("{}", "{}", None), ("{}@3", "{}", 3), ("{}@12", "{}", 12)]
)
def test_a_teacher_is_a_folder_and_maybe_a_step(flow, field, folder, step):
    location = locate_teacher(field.format(flow))
    assert (str(location.folder), location.step) == (folder.format(flow), step)


def test_the_average_teaches_and_not_the_trained_network(flow, tmp_path):
    teacher = load("cd_flow", flow)[1]["teacher"]
    assert largest_difference(teacher, read_saved(locate_teacher(flow).folder, "ema_0.999")) == 0.0
    assert largest_difference(teacher, read_saved(locate_teacher(flow).folder, "network")) > 0.01
    own = save_run(tmp_path / "own", "flow_matching", **{"ema.sample_with": "network"})
    teacher = load("cd_flow", own)[1]["teacher"]
    assert largest_difference(teacher, read_saved(tmp_path / "own", "network")) == 0.0


def test_a_step_picks_that_checkpoint(flow):
    newest, older = (load("cd_flow", flow + at)[1]["teacher"] for at in ("", "@3"))
    folder = locate_teacher(flow).folder
    assert largest_difference(newest, read_saved(folder, "ema_0.999", 5)) == 0.0
    assert largest_difference(older, read_saved(folder, "ema_0.999", 3)) == 0.0
    assert largest_difference(newest, older) > 0.01


def test_the_step_is_written_into_the_config(flow, tmp_path):
    new = tmp_path / "new"
    assert pin_teacher(small_config("cd_flow", teacher=flow), new).teacher == f"{flow}@5"
    assert pin_teacher(small_config("cd_flow", teacher=f"{flow}@3"), new).teacher == f"{flow}@3"
    assert pin_teacher(small_config("ct"), new).teacher == ""


def test_a_run_that_goes_on_keeps_the_step_of_its_teacher(flow, tmp_path, monkeypatch):
    # The teacher has a newer checkpoint by now, or is gone; asking for another step is another run.
    config = small_config("cd_flow", teacher=f"{flow}@3")
    workdir.start_run(tmp_path, pin_teacher(config, tmp_path))
    # A run that has saved nothing is none yet.
    assert pin_teacher(small_config("cd_flow", teacher=flow), tmp_path).teacher == f"{flow}@5"
    gone = small_config("cd_flow", teacher=f"{tmp_path / 'gone'}@3")
    workdir.start_run(tmp_path / "student", gone)
    own, students = restore.has_checkpoint, (tmp_path, tmp_path / "student")
    monkeypatch.setattr(restore, "has_checkpoint", lambda run: run in students or own(run))
    assert pin_teacher(small_config("cd_flow", teacher=flow), tmp_path).teacher == f"{flow}@3"
    assert (
        pin_teacher(small_config("cd_flow", teacher=f"{flow}@5"), tmp_path).teacher == f"{flow}@5"
    )
    assert pin_teacher(gone, tmp_path / "student").teacher == gone.teacher


def test_a_run_does_not_teach_itself(flow, tmp_path):
    folder = locate_teacher(flow).folder
    (tmp_path / "link").symlink_to(folder)
    for run in (folder, tmp_path / "link"):
        for teacher in (flow, f"{flow}@3"):
            with pytest.raises(ValueError, match=f"teacher={teacher} is the run itself"):
                pin_teacher(small_config("cd_flow", teacher=teacher), run)


def test_the_teacher_is_known_by_its_parameters(flow, tmp_path, monkeypatch):
    def identity_of(teacher, method="cd_flow", **fields):
        config, experiment = small_experiment(method, teacher=teacher, **fields)
        return config, teacher_identity(config, experiment)

    config, own = identity_of(f"{flow}@5")
    shapes = jax.eval_shape(build(config).model.network.init, jax.random.key(0))
    params, _ = restore.restore_network(locate_teacher(flow).folder, "ema_0.999", shapes, 5)
    assert own == {
        "run": workdir.recorded_identity(locate_teacher(flow).folder).id,
        "step": 5,
        "network": "ema_0.999",
        "fingerprint": fingerprint(params),
    }
    others = [
        save_run(tmp_path / "seed_1", "flow_matching", seed=1),  # another run, at the same step
        f"{flow}@3",
    ]
    workdir.start_run(tmp_path / "student", config, teacher=own)
    # The parameters count, not the run; records of older versions do not have its id.
    copied = {name: value for name, value in own.items() if name != "run"}
    workdir.start_run(tmp_path / "student", config, teacher=copied)
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    for other in others:
        with pytest.raises(ValueError, match=r"the teacher of .* has changed .*fingerprint \("):
            workdir.start_run(tmp_path / "student", config, teacher=identity_of(other)[1])
    # Only what is read is asked for.
    assert identity_of(f"{flow}@5", "cd_flow", teacher_network="network")[1]["network"] == "network"
    assert identity_of("", "flow_matching")[1] is None


def test_another_network_of_the_teacher_can_be_named(flow):
    raw = load("cd_flow", flow, teacher_network="network")[1]["teacher"]
    folder = locate_teacher(flow).folder
    assert largest_difference(raw, read_saved(folder, "network", 5)) == 0.0
    assert largest_difference(raw, read_saved(folder, "ema_0.999", 5)) > 0.0
    with pytest.raises(ValueError, match="teacher_network='ema_0.5' is not one of"):
        load("cd_flow", flow, teacher_network="ema_0.5")


def test_a_path_s_default_written_out_is_the_same_path():
    config, experiment = small_experiment("edm")
    same = small_config("edm", **{"path.sigma_max": 80.0})
    check_teacher(same, config, experiment)
    with pytest.raises(ValueError, match="path.sigma_max"):
        check_teacher(small_config("edm", **{"path.sigma_max": 40.0}), config, experiment)


def test_a_teacher_of_another_version_is_named():
    config, experiment = small_experiment("cd_flow", teacher="runs/old")
    old = small_config("flow_matching")
    old.optimizer.gone = 1
    with pytest.raises(ValueError, match="runs/old was made by another version.*optimizer.gone"):
        rebuild(old, "runs/old")
    with pytest.raises(ValueError, match="teacher=runs/old was made by another version"):
        check_teacher(config, old, experiment)


@pytest.mark.parametrize("method", ["cd_flow", "flow_matching"])
def test_student_averages_and_target_start_as_the_teacher_or_not(flow, method):
    for start in (True, False):
        if method == "flow_matching" and not start:
            continue  # then no teacher is used, which is an error
        experiment, frozen = load(method, flow, start_from_teacher=start)
        state = create_state(experiment.objective, experiment.optimizers, 0, frozen, mesh())
        copies = {**state.networks, **state.followers}
        assert {"network", "ema_0.999"} <= set(copies)
        assert ("target" in copies) == (method == "cd_flow")
        for params in copies.values():
            difference = largest_difference(params, frozen["teacher"])
            assert difference == 0.0 if start else difference > 0.01


def test_a_teacher_stays_as_it_is_while_its_student_is_trained(flow, tmp_path):
    config, experiment = small_experiment("cd_flow", teacher=flow, steps=2)
    frozen = load_teacher(config, experiment, mesh())
    before = jax.device_get(frozen)
    state = train(
        Training(experiment.objective, experiment.optimizers, frozen, mesh(), 0, config.batch_size),
        Stream(lambda start: synthetic_batches(config, start), dict),
        Schedule(steps=2, log=1),
        Upkeep(tmp_path, {}),
        lambda state: {},
    )
    assert largest_difference(before, frozen) == 0.0
    assert largest_difference(state.networks["network"], frozen["teacher"]) > 1e-4
    assert not any("teacher" in p.name for p in (tmp_path / "checkpoints" / "2").iterdir())


def test_no_gradient_reaches_the_teacher_of_a_pair_though_its_value_matters():
    config, experiment = small_experiment("cd_flow", batch_size=8)
    player = experiment.objective.players["network"]
    params, teacher, other = (
        perturb(player.network.init(jax.random.key(0)), seed=i) for i in range(3)
    )
    batch = next(synthetic_batches(config))

    @jax.jit
    def loss(params, teacher):
        networks = {"network": params, "teacher": teacher, "target": params}
        value, _ = player.loss(params, networks, batch, jax.random.key(1), jnp.int32(0))
        return value.mean()

    gradient = jax.jit(jax.grad(loss, argnums=1))(params, teacher)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert abs(loss(params, teacher) - loss(params, other)) > 1e-6


@pytest.mark.parametrize(
    ("method", "teacher", "fields", "new"),
    [
        ("cd_flow", "flow", {"model.guidance_input": True}, "guidance_embedder"),
        ("scd", "trigflow", {}, "loss_weight"),
        ("boot", "flow", {}, "second_time_embedder"),
        ("lcm", "ddpm", {"objective.guidance_range": (1.0, 4.0)}, "guidance_embedder"),
    ],
)
def test_new_parts_of_a_student_leave_the_teacher_s_output(method, teacher, fields, new, request):
    folder = request.getfixturevalue(teacher)
    if method == "lcm":
        fields = fields | {"objective.guidance_scale": 2.0}
    if method == "cd_flow":  # whose loss tells the network a scale only with a range of them
        fields = fields | {"objective.guidance_range": (1.0, 4.0)}
    experiment, frozen = load(method, folder, **fields)
    own = frozen["teacher"]
    original = read_saved(locate_teacher(folder).folder, "ema_0.999")
    parts = {*own, *own["conditioning"]} - {*original, *original["conditioning"]}
    assert parts == {new}
    taught = build(workdir.load_config(locate_teacher(folder).folder)).model.network
    network = experiment.model.network
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    t, label = jnp.array([0.9, 0.5, 0.1]), jnp.array([3, -1, 0])
    condition = {"label": label, "guidance_scale": jnp.array([1.0, 3.0, 4.0])}
    ours = jax.jit(network.apply)(own, x, t, t, condition)
    theirs = jax.jit(taught.apply)(original, x, t, t, {"label": label})
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_array_equal(ours, theirs)


def test_a_teacher_is_split_over_the_devices_as_the_state_is(trigflow):
    eight = mesh_of(2, 4)
    config, experiment = small_experiment("scd", teacher=trigflow)  # with a new part
    teacher = load_teacher(config, experiment, eight)["teacher"]
    expected = tree_shardings(teacher, eight)
    for leaf, sharding in zip(*map(jax.tree.leaves, (teacher, expected)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    one = load_teacher(config, experiment, mesh())["teacher"]
    assert largest_difference(one, teacher) == 0.0


def test_a_run_from_before_a_field_has_its_default(flow):
    config, experiment = small_experiment("cd_flow", teacher=flow)
    teacher = workdir.load_config(locate_teacher(flow).folder)
    del teacher.model.scan
    check_teacher(config, teacher, experiment)


def test_new_parts_of_a_student_are_drawn_by_its_seed():
    config = small_config("flow_matching")
    experiment = build(config, random_network((8, 8, 1)))
    given = {"a": jnp.float32(5.0)}
    drawn = [adopt(given, experiment.model.network, seed, mesh()) for seed in (0, 1)]
    assert [float(params["a"]) for params in drawn] == [5.0, 5.0]
    assert float(drawn[0]["d"]) != float(drawn[1]["d"])


def test_replace_parts_takes_every_part_that_is_given_and_no_other():
    own = {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 4}}
    given = {"a": 10, "b": {"c": 20}, "g": {"h": 30}}
    assert replace_parts(own, given) == {"a": 10, "b": {"c": 20, "d": 3}, "e": {"f": 4}}


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("cd_flow", {"model.size": "micro"}, r"model.size \(nano there, micro here\)"),
        ("cd_flow", {"path.name": "vp_cosine"}, r"path.name \(linear there, vp_cosine here\)"),
        ("cd_flow", {"prediction.kind": "v"}, r"prediction.kind \(velocity there, v here\)"),
        ("cd_flow", {"data.num_classes": 3}, r"data.num_classes \(10 there, 3 here\)"),
        ("cd_flow", {"data.image_size": 16}, r"data.image_size \(8 there, 16 here\)"),
        ("cd_flow", {"model.scan": True}, r"model.scan \(False there, True here\)"),
        ("shortcut", {}, r"model.second_time \(none there, step_size here\)"),
        ("cd", {}, r"path.name .* prediction.kind"),
    ],
)
def test_another_model_cannot_be_a_teacher(flow, method, fields, message, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)  # nothing is compiled before the refusal
    with pytest.raises(ValueError, match=f"teacher={flow} is another model.*{message}"):
        load(method, flow, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"model.dropout": 0.1},
        {"model.dtype": "bfloat16"},
        {"model.remat": True},
        {"model.adaln_zero": False},
        {"seed": 3},
    ],
)
def test_what_does_not_change_the_parameters_meaning_may_differ(flow, fields):
    config, experiment = small_experiment("cd_flow", teacher=flow, **fields)
    check_teacher(config, workdir.load_config(locate_teacher(flow).folder), experiment)


def test_a_consistency_model_is_no_teacher_of_another_but_may_start_one(tmp_path):
    folder = tmp_path / "cm"
    workdir.start_run(folder, small_config("ct"))
    for fields in ({}, {"path.name": "ve", "prediction.kind": "F"}):
        method = "progressive" if fields else "cd"
        config, experiment = small_experiment(method, teacher=str(folder), **fields)
        with pytest.raises(ValueError, match="by ct, which does not predict .* use a run"):
            load_teacher(config, experiment, mesh())
    config, experiment = small_experiment("ect", teacher=str(folder))
    check_teacher(config, workdir.load_config(folder), experiment)


@pytest.mark.parametrize(
    ("method", "taught_by", "fields"),
    [
        ("cd_flow", "flow_matching", {"objective.guidance_scale": 2.0}),
        ("scd", "trigflow", {"objective.guidance_scale": 2.0}),
        ("lcm", "ddpm", {}),
        ("sim_flow", "flow_matching", {"objective.guidance_scale": 2.0}),
    ],
)
def test_guidance_needs_a_teacher_that_knows_the_null_class(tmp_path, method, taught_by, fields):
    kind = {"prediction.kind": "v"} if taught_by == "ddpm" else {}
    taught = small_config(taught_by, **kind, **{"objective.label_dropout": 0.0})
    workdir.start_run(tmp_path, taught)
    config, experiment = small_experiment(method, teacher=str(tmp_path), **fields)
    with pytest.raises(ValueError, match=r"null class.*objective.label_dropout above 0"):
        load_teacher(config, experiment, mesh())


def test_a_method_that_needs_a_teacher_says_so():
    for method in ("cd", "cd_flow", "scd", "lcm", "progressive"):
        config, experiment = small_experiment(method)
        with pytest.raises(ValueError, match=f"{method} needs a teacher; set --config.teacher="):
            load_teacher(config, experiment, mesh())
    for method in ("ct", "ect", "sct", "edm"):
        config, experiment = small_experiment(method)
        assert load_teacher(config, experiment, mesh()) == {}


def test_a_method_whose_teacher_is_its_start_starts_from_it(flow):
    config, experiment = small_experiment("progressive", teacher=flow)
    assert load_teacher(config, experiment, mesh()).keys() == {"teacher"}
    config, experiment = small_experiment("progressive", teacher=flow, start_from_teacher=False)
    with pytest.raises(ValueError, match="by starting from it; leave start_from_teacher=True"):
        load_teacher(config, experiment, mesh())


def test_a_teacher_without_any_use_is_refused(flow):
    for method in ("ct", "ect", "sct", "flow_matching", "shortcut"):
        config = small_config(method, teacher=flow, start_from_teacher=False)
        with pytest.raises(ValueError, match=f"teacher is not used by {method} .*=False"):
            build(config)


def test_a_missing_teacher_is_named(flow, tmp_path):
    reads = (
        lambda config: pin_teacher(config, tmp_path / "new"),
        lambda config: load_teacher(config, build(config), mesh()),
    )
    for read in reads:
        for folder in (tmp_path / "none", tmp_path):
            with pytest.raises(ValueError, match=f"teacher={folder}: {folder} is no run"):
                read(small_config("cd_flow", teacher=str(folder)))
        with pytest.raises(ValueError, match="has no step 4; it has 3, 5"):
            read(small_config("cd_flow", teacher=f"{flow}@4"))
    workdir.start_run(tmp_path / "begun", small_config("flow_matching"))
    with pytest.raises(ValueError, match="begun holds no checkpoints"):
        pin_teacher(small_config("cd_flow", teacher=str(tmp_path / "begun")), tmp_path / "new")


RANGE, SCALE, SCALES = "objective.guidance_range", "objective.guidance_scale", "teacher_scales"


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A guidance run of the scales 1.5 to 4."""
    fields = {RANGE: (1.5, 4.0), SCALE: 2.0}
    return save_run(tmp_path_factory.mktemp("guided"), "guidance", **fields)


def predictions(experiment, params, scale):
    """Predictions of a network at 8 x 8 noise, with its scale as an input if it has one."""
    network = experiment.model.network
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.9, 0.5, 0.1])
    condition = {"label": jnp.array([3, -1, 0]), "guidance_scale": jnp.full(3, scale)}
    return jax.jit(network.apply)(params, x, t, t, condition)


def test_a_teacher_that_takes_the_scale_is_the_student_s_at_its_own(guided):
    folder = locate_teacher(guided).folder
    teacher = rebuild(workdir.load_config(folder), guided)
    own = read_saved(folder, "ema_0.999")
    at = lambda scale: predictions(teacher, own, scale)
    assert largest_difference(at(2.0), at(4.0)) > 1e-3
    # One scale: the student's network lacks the input, and the teacher is at that scale.
    for method, scale in (("sim_flow", 3.0), ("cd_flow", 4.0)):
        experiment, frozen = load(method, guided, **{SCALES: (1.5, 4.0), SCALE: scale})
        assert not experiment.model.network.guidance_input
        made = predictions(experiment, frozen["teacher"], 1.0)
        np.testing.assert_allclose(made, at(scale), rtol=1e-4, atol=1e-5)
    # A range: the network reads the scale of each row.
    fields = {SCALES: (1.5, 4.0), RANGE: (1.5, 4.0), SCALE: 2.0}
    experiment, frozen = load("progressive", guided, **fields)
    assert largest_difference(frozen["teacher"], own) == 0.0
    # Pairs are made by the teacher's own network.
    fields = {SCALES: (1.5, 4.0), SCALE: 3.0, "pairs.steps": 2}
    experiment, frozen = load("reflow", guided, **fields)
    assert largest_difference(frozen["sampled_teacher"], own) == 0.0
    made = predictions(experiment, frozen["teacher"], 1.0)
    np.testing.assert_allclose(made, at(3.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (
            "sim_flow",
            {SCALES: (1.5, 4.0), SCALE: 6.0},
            "takes guidance scales from 1.5 to 4, not 6",
        ),
        (
            "ect",
            {SCALES: (1.5, 4.0), "path.name": "linear", "prediction.kind": "velocity"},
            "not 1;",
        ),
        ("cd_flow", {SCALES: (1.5, 4.0), RANGE: (1.0, 4.0), SCALE: 2.0}, "from 1.5 to 4, not 1;"),
        ("sim_flow", {SCALE: 3.0}, r"has teacher_scales=\(1.5, 4.0\), not \(\); leave"),
    ],
)
def test_scales_that_a_teacher_does_not_take_are_refused(guided, method, fields, message):
    with pytest.raises(ValueError, match=message):
        load(method, guided, **fields)


def test_pairs_need_a_teacher_on_the_path_that_can_make_them(flow, edm):
    for method in ("direct", "reflow"):
        with pytest.raises(ValueError, match=r"path.name \(ve there, linear here\)"):
            load(method, edm)
        made = load(method, flow, **{SCALE: 2.0})[1]
        assert made.keys() == {"teacher", "sampled_teacher"}


def test_a_reflow_run_teaches_the_next_and_losses_but_knows_no_null_class(flow, tmp_path):
    run = save_run(tmp_path / "reflow", "reflow", **{SCALE: 2.0})
    assert load("reflow", run, **{SCALE: 2.0})[1].keys() == {"teacher", "sampled_teacher"}
    with pytest.raises(ValueError, match="objective.guidance_scale=1 is not possible with .*only"):
        load("reflow", run)
    load("cd_flow", run)
    with pytest.raises(ValueError, match="does not know the null class"):
        load("cd_flow", run, **{SCALE: 2.0})
