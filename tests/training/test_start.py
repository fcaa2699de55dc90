"""What a new run takes from another one by --from, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.training.compiled_step import create_state
from fewstep.training.experiment import build
from fewstep.training.optimizer import moments_of
from fewstep.training.start import (
    check_same_origin,
    choose_sources,
    describe_origin,
    find_origin,
    load_start,
    origin_identity,
)
from fewstep.training.state import initial_state
from fewstep.training.storage import checkpoint, restore, workdir
from fewstep.training.storage.identity import as_dict
from fewstep.training.trees import common_names, leaves_by_path
from tests.training.runs import largest_difference, perturb, save_run, small_config
from tests.training.test_sharding import mesh_of

pytestmark = pytest.mark.usefixtures("one_block")


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A flow_matching run whose optimizer has moved, at step 5."""
    folder = tmp_path_factory.mktemp("flow")
    config = small_config("flow_matching")
    experiment = build(config)
    run = workdir.start_run(folder, config)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, mesh_of(1, 1))
    moved = state._replace(
        step=jnp.int32(5),
        networks=perturb(state.networks, seed=1),
        followers=perturb(state.followers, seed=2),
        optimizers=jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state.optimizers),
    )
    with checkpoint.open_checkpoints(folder) as checkpoints:
        checkpoint.save_state(checkpoints, moved, as_dict(config), run.stamp)
    return folder, moved


def start(given, method, **fields):
    """The config, experiment, initial state and lines of a new run that starts from another."""
    config, mesh = small_config(method, **fields), mesh_of(1, 1)
    experiment = build(config)
    own = jax.eval_shape(
        lambda: initial_state(
            experiment.objective._replace(init_from={}), experiment.optimizers, 0, {}
        )
    )
    origin = find_origin(str(given), config, experiment, mesh)
    frozen = load_start(origin, own)
    objective = experiment.objective._replace(init_from={})
    state = create_state(objective, experiment.optimizers, 0, frozen, mesh)
    return experiment, state, describe_origin(origin, own, config)


@pytest.mark.parametrize(
    ("method", "other", "sources"),
    [
        ("flow_matching", "flow_matching", {"network": "network", "ema_0.999": "ema_0.999"}),
        ("ct", "shortcut", {"network": "network", "ema_0.999": "ema_0.999", "target": "target"}),
        ("sim_flow", "flow_matching", {"generator": "ema_0.999", "ema_0.999": "ema_0.999"}),
        ("flow_matching", "sim_flow", {"network": "ema_0.999", "ema_0.999": "ema_0.999"}),
        ("dmd", "sim", {n: n for n in ("fake_score", "generator", "ema_0.999")}),
    ],
)
def test_players_start_by_name_or_from_what_samples(method, other, sources):
    own, there = (build(small_config(name)) for name in (method, other))
    assert choose_sources(own.objective, there) == sources


def test_all_that_fits_goes_on_and_steps_count_from_0(flow):
    folder, saved = flow
    _, state, lines = start(folder, "flow_matching", **{"optimizer.learning_rate": 1e-5})
    assert int(state.step) == 0 and lines == [
        f"starts from {folder}@5: network from network, ema_0.999 from ema_0.999"
    ]
    assert largest_difference(state.networks, saved.networks) == 0.0
    assert largest_difference(state.followers, saved.followers) == 0.0
    own, theirs = (moments_of(s.optimizers["network"]) for s in (state, saved))
    assert largest_difference(own, theirs) == 0.0 and float(own["count"]) == 1.0
    counts = [
        int(leaf)
        for path, leaf in leaves_by_path(state.optimizers["network"]).items()
        if path.endswith("count")
    ]
    assert counts == [1, 0]  # of the moments, and of the schedule


def test_parts_that_do_not_fit_are_named_and_fresh(flow):
    folder, saved = flow
    fields = {"data.num_classes": 3, "optimizer.name": "radam", "ema.decays": (0.5,)}
    _, state, lines = start(folder, "flow_matching", **fields)
    table = state.networks["network"]["conditioning"]["label_table"]
    assert table.shape == (4, 32) and float(jnp.abs(table).max()) < 0.2
    assert lines[1:] == [
        "fresh in network: conditioning/label_table",
        "the optimizer of network starts anew",
    ]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimizers))
    assert largest_difference(state.followers["ema_0.5"], state.networks["network"]) == 0.0
    final = [s.networks["network"]["final"] for s in (state, saved)]
    assert largest_difference(*final) == 0.0


@pytest.mark.parametrize(
    ("fields", "new"),
    [
        ({}, "conditioning/second_time_embedder"),
        (
            {"objective.guidance_range": (1.0, 4.0)},
            "conditioning/guidance_embedder, conditioning/second_time_embedder",
        ),
    ],
)
def test_a_new_input_has_no_effect_at_first(flow, fields, new):
    # So a shortcut model from flow_matching has its velocity at every step size and scale.
    folder, saved = flow
    experiment, state, lines = start(folder, "shortcut", **fields)
    assert f"fresh in network: {new}" in lines
    there = build(small_config("flow_matching")).model.network
    x, label = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([3, -1, 0])
    t, s = jnp.array([0.9, 0.5, 0.5]), jnp.array([0.1, 0.0, 0.5])
    ours = jax.jit(experiment.model.network.apply)(
        state.networks["network"], x, t, s, {"label": label, "guidance_scale": 4.0 * t}
    )
    theirs = jax.jit(there.apply)(saved.networks["network"], x, t, t, {"label": label})
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_array_equal(ours, theirs)
    # Its weights in between are not zero, so that it learns.
    hidden = state.networks["network"]["conditioning"]["second_time_embedder"]["hidden"]
    assert np.any(hidden["kernel"])


def test_parts_that_the_new_network_lacks_are_left_out(tmp_path):
    lines = start(save_run(tmp_path, "shortcut"), "flow_matching")[2]
    assert lines[-1] == "not in network, and left out: conditioning/second_time_embedder"


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("edm", {}, r"another model: path.name \(linear there, ve here\); .*prediction.kind"),
        ("flow_matching", {"prediction.kind": "v"}, r"prediction.kind \(velocity there, v here\)"),
        ("flow_matching", {"model.time_scale": 4.0}, "model.time_scale"),
        ("flow_matching", {"codec.name": "pixels"}, r"codec.name \( there, pixels here\)"),
        ("flow_matching", {"codec.scale": (2.0,)}, r"codec.scale \(\[\] there, \[2.0\] here\)"),
        ("flow_matching", {"model.size": "micro"}, r"only \d+% of the parameters of network fit"),
    ],
)
def test_a_run_that_cannot_start_another_is_refused(flow, method, fields, message):
    with pytest.raises(ValueError, match=f"--from={flow[0]}.*{message}"):
        start(flow[0], method, **fields)


def test_the_other_run_must_exist_and_have_the_step(flow, tmp_path):
    config, mesh = small_config("flow_matching"), mesh_of(1, 1)
    experiment = build(config)
    for given, own, message in (
        (tmp_path, flow[0], "is no run; name the folder of one"),
        (f"{flow[0]}@4", tmp_path, "has no step 4; it has 5"),
        (f"{flow[0]}@5", flow[0], "is the run itself; choose another --workdir"),
    ):
        with pytest.raises(ValueError, match=message):
            find_origin(str(given), config, experiment, mesh, own)


def test_a_record_says_where_a_run_started_and_it_goes_on_without_that(flow, tmp_path):
    folder, _ = flow
    config = small_config("flow_matching")
    origin = origin_identity(find_origin(str(folder), config, build(config), mesh_of(1, 1)))
    assert (origin["run"], origin["step"]) == (str(folder), 5)
    assert origin["id"] == workdir.recorded_identity(folder).id
    prints = restore.read_record(folder)["fingerprints"]
    assert origin["fingerprints"] == {name: prints[name] for name in ("ema_0.999", "network")}
    workdir.start_run(tmp_path / "new", config, started_from=origin)
    workdir.start_run(tmp_path / "plain", config)
    assert workdir.recorded_identity(tmp_path / "new").started_from == origin
    for given in (folder, f"{folder}@5", tmp_path / "gone", f"{tmp_path / 'gone'}@5"):
        check_same_origin(str(given), tmp_path / "new")
    for given in (f"{folder}@4", tmp_path / "plain"):
        with pytest.raises(ValueError, match=f"has started from {folder}@5, and goes on"):
            check_same_origin(str(given), tmp_path / "new")
    with pytest.raises(ValueError, match="has not started from another run, and goes on"):
        check_same_origin(str(folder), tmp_path / "plain")


def test_branches_are_named_once():
    tree = ["a/b/c", "a/b/d", "a/e", "f"]
    assert common_names(["a/b/c", "a/b/d"], tree) == ["a/b"]
    assert common_names(["a/b/c", "f"], tree) == ["a/b/c", "f"]
