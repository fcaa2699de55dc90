import re
from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, PartitionSpec

from fewstep.diffusion.path import linear
from fewstep.diffusion.prediction import KINDS
from fewstep.models.dit import SIZES, DiTSize, dit
from fewstep.models.mlp import mlp
from fewstep.models.model import Model
from fewstep.modes.job import check_step
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.shortcut import shortcut
from fewstep.training.compiled_step import compile_step, create_state
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.experiment import build_on
from fewstep.training.optimizer import Optimizer
from fewstep.training.sharding import (
    AXES,
    batch_sharding,
    check_batch_size,
    count_row_devices,
    device_grid,
    group_by_slice,
    make_mesh,
    parameter_spec,
    put_batch,
    replicated_sharding,
    spread,
    tree_shardings,
)
from fewstep.training.sources import TEACHER, abstract_batch
from fewstep.training.teacher import only_starts_from_teacher
from tests.networks import NO_BLOCKS, affine_network, build_model
from tests.training.kinds import methods_of_kinds, objective_and_kind, turn_of
from tests.training.runs import (
    largest_difference,
    perturb,
    random_batch,
    small_config,
    small_experiment,
    synthetic_batches,
    untrained_teacher,
)

STEPS = 10
# Collectives other than sums.
MOVED_ROWS = re.compile(r"(?:all-gather|all-to-all|collective-permute)(?:-start)?\(")


def mesh_of(data, fsdp):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, AXES)


def train_on(method, mesh, steps=STEPS, **fields):
    """State and metrics after some steps on a mesh, and the compiled program of one step."""
    config = small_config(method, **fields)
    experiment = build_on(config, mesh)
    objective, optimizers = experiment.objective, experiment.optimizers
    frozen = jax.tree.map(
        jax.device_put,
        frozen_of(experiment),
        tree_shardings(frozen_of(experiment), mesh),
    )
    # A teacher whose network is not zero, and a student that starts elsewhere if it can.
    start = {"network": TEACHER} if only_starts_from_teacher(objective) else {}
    state = create_state(objective._replace(init_from=start), optimizers, 0, frozen, mesh)
    given = objective, config.batch_size, experiment.space.shape, config.data.num_classes
    batches = [put_batch(random_batch(*given, seed=number), mesh) for number in range(steps)]
    step = compile_step(objective, optimizers, 0, mesh).lower(state, frozen, batches[0]).compile()
    for batch in batches:
        state, metrics = step(state, frozen, batch)
    return state, metrics, step.as_text()


def frozen_of(experiment):
    if only_starts_from_teacher(experiment.objective):
        experiment = experiment._replace(objective=experiment.objective._replace(frozen=(TEACHER,)))
    return {name: perturb(params) for name, params in untrained_teacher(experiment).items()}


@pytest.mark.parametrize("method", methods_of_kinds())
def test_one_device_equals_eight(method, monkeypatch):
    # Blocks are split in the same way by every method, so one method has one.
    monkeypatch.setitem(SIZES, "nano", DiTSize(64, 1, 4) if method == "shortcut" else NO_BLOCKS)
    # Adam's first update is the sign of a gradient, in the first step of every stage: of rounding
    # where it is nearly 0, unless it is divided by more.
    fields = {"optimizer.eps": 1e-3} if objective_and_kind(method)[1].staged else {}
    one, metrics_one, _ = train_on(method, mesh_of(1, 1), **fields)
    # Each axis alone in turn: what the axes do does not depend on the objective.
    alone = turn_of([(8, 1), (1, 8)], 1) if method == "shortcut" else []
    for data, fsdp in ((2, 4), *alone):
        eight, metrics_eight, _ = train_on(method, mesh_of(data, fsdp), **fields)
        difference = largest_difference(one.networks, eight.networks)
        print(f"{method}: 1 device against {data} x {fsdp}: {difference:.2e}")
        assert difference < 1e-5
        assert largest_difference(one.followers, eight.followers) < 1e-5
        for name in (n for n in metrics_one if n.endswith("loss")):
            np.testing.assert_allclose(
                metrics_one[name].total, metrics_eight[name].total, rtol=1e-5, atol=1e-6
            )


@pytest.mark.in_turn("scan", 2)
@pytest.mark.parametrize("scan", [False, True])
def test_devices_share_the_images_of_few_bootstrap_rows(scan, monkeypatch):
    # One block is as good as three; a loop has two, since XLA unrolls a loop of one.
    monkeypatch.setitem(SIZES, "nano", DiTSize(64, 2 if scan else 1, 4))
    fields = {"batch_size": 16, "objective.max_steps": 4, "model.scan": scan}  # 4 of 16 rows
    one, _, program_one = train_on("shortcut", mesh_of(1, 1), steps=3, **fields)
    eight, _, program_eight = train_on("shortcut", mesh_of(8, 1), steps=3, **fields)
    assert largest_difference(one.networks, eight.networks) < 1e-5
    # Whole images on four devices would make it 1.14: 3 F for 16 rows and 2 F for 4, or for 8.
    assert 8 * product_flops(program_eight) < 1.02 * product_flops(program_one)


def test_how_many_devices_share_an_image():
    # (rows, devices, lines of patches) -> the devices that rows are split over
    shares = {
        (64, 8, 16): 8,
        (9, 8, 16): 8,  # 2 rows each, rather than an eighth of 9 and keys and values of 9
        (8, 32, 16): 8,
        (4, 8, 4): 4,
        (9, 32, 16): 16,
        (2, 32, 16): 2,
        (2, 32, 4): 8,  # an image has no 16 parts
        (2, 8, 3): 8,
        (2, 8, 1): 8,
        (1, 6, 16): 3,  # nor 6
        (5, 6, 16): 6,
    }
    for given, devices in shares.items():
        assert count_row_devices(*given) == devices, given


def test_fused_attention_is_given_whole_images_on_one_mesh(monkeypatch):
    # As cuDNN's: JAX asks how it is split, and for one mesh in all of the program.
    plain = jax.nn.dot_product_attention
    fused = custom_partitioning(lambda *qkv: plain(*qkv))
    split = []

    def partition(mesh, shapes, result):
        split.append(tuple(shapes[0].sharding.spec))
        return mesh, plain, result.sharding, tuple(shape.sharding for shape in shapes)

    fused.def_partition(partition=partition, sharding_rule="b n h d, b m h d, b m h d -> b n h d")
    monkeypatch.setattr("fewstep.models.layers.has_fused_attention", lambda device: True)
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *qkv, scale, implementation: (fused if implementation == "cudnn" else plain)(*qkv),
    )
    mesh = mesh_of(8, 1)
    built = dit((8, 8, 1), size="nano", dtype="bfloat16", attention="cudnn")
    params, network = built.init(jax.random.key(0)), spread(built, mesh)

    def both(params, x, t):
        whole = network.apply(params, x, t, t, {})
        return whole, network.apply(params, x[:4], t[:4], t[:4], {})

    x, t = np.ones((8, 8, 8, 1), np.float32), np.ones(8, np.float32)
    shardings = (replicated_sharding(mesh), *[batch_sharding(mesh)] * 2)
    jax.jit(both, in_shardings=shardings).lower(params, x, t).compile()
    assert split and all(axis is None for spec in split for axis in spec[1:])


def small_game(mesh, micro_batches, rows=64):
    """The compiled step, initial state, teacher and batch of a one-step generator of vectors."""
    model = Model(mlp((3,), 4, width=16, depth=1), linear(), KINDS["velocity"])
    objective = distribution_matching(model)._replace(init_from={})
    optimizers = dict.fromkeys(objective.players, Optimizer(optax.adam(1e-2), lambda count: 1e-2))
    frozen = {"teacher": perturb(jax.jit(model.network.init)(jax.random.key(1)))}
    state = create_state(objective, optimizers, 0, frozen, mesh)
    batch = put_batch({"label": np.arange(rows, dtype=np.int32) % 4}, mesh)
    step = compile_step(objective, optimizers, 0, mesh, micro_batches)
    return step.lower(state, frozen, batch).compile(), state, frozen, batch


@pytest.mark.some_days(2)
def test_one_device_equals_eight_in_micro_batches_and_no_row_moves():
    def trained(mesh):
        step, state, frozen, batch = small_game(mesh, 2)
        frozen = jax.device_put(frozen, replicated_sharding(mesh))
        for _ in range(5):
            state, metrics = step(state, frozen, batch)
        return state, metrics, step.as_text()

    one, metrics_one, _ = trained(mesh_of(1, 1))
    eight, metrics_eight, program = trained(mesh_of(8, 1))
    assert largest_difference(one.networks, eight.networks) < 1e-5
    for name in metrics_one:
        for a, b in zip(metrics_one[name], metrics_eight[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Gradients and metrics are summed over the devices; rows stay where they are.
    assert not MOVED_ROWS.findall(program)


@pytest.mark.some_days(2)
def test_micro_batches_need_less_memory():
    compiled = [small_game(mesh_of(1, 1), count, rows=4096)[0] for count in (1, 4)]
    whole, parts = (each.memory_analysis().temp_size_in_bytes for each in compiled)
    assert parts < 0.4 * whole


def test_micro_batches_too_small_for_the_bootstrap_rows_are_an_error():
    config, experiment = small_experiment("shortcut")
    config.micro_batches = 4
    with pytest.raises(ValueError, match=r"16 rows, batch_size / micro_batches, .* such as 28"):
        check_step(experiment, config, mesh_of(1, 1), {})


def test_bootstrap_rows_are_spread_evenly_over_the_devices():
    # Every device holds 8 rows, two of them bootstrap rows, and sends none to another.
    mesh = mesh_of(8, 1)
    objective = shortcut(
        build_model(affine_network()._replace(second_time="step_size"), linear()),
        bootstrap_fraction=0.25,
    )._replace(init_from={})
    optimizers = {"network": Optimizer(optax.sgd(1e-2), lambda count: 1e-2)}
    state = create_state(objective, optimizers, 0, {}, mesh)
    batch = abstract_batch(objective, 64, (2, 2, 1))
    program = compile_step(objective, optimizers, 0, mesh).lower(state, {}, batch).compile()
    assert not MOVED_ROWS.findall(program.as_text())


def test_fsdp_splits_parameters_optimizer_and_followers_alike():
    _, experiment = small_experiment()
    mesh = mesh_of(2, 4)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, mesh)
    total, local = 0, 0
    for leaf in jax.tree.leaves(state):
        total += leaf.nbytes
        local += leaf.addressable_shards[0].data.nbytes
    assert local / total < 0.3  # a quarter, and the small arrays
    specs = lambda tree: [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]
    of_network = specs(state.networks["network"])
    assert specs(state.followers["target"]) == of_network
    assert specs(state.optimizers["network"][0].mu) == of_network


def test_state_is_donated_and_keeps_its_sharding():
    config, experiment = small_experiment()
    mesh = mesh_of(2, 4)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, mesh)
    step = compile_step(experiment.objective, experiment.optimizers, 0, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    updated, _ = step(state, {}, put_batch(next(synthetic_batches(config)), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.networks))
    for leaf, sharding in zip(*map(jax.tree.leaves, (updated, shardings)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_parameter_spec():
    assert parameter_spec("a/kernel", (64, 128), 4) == PartitionSpec(None, "fsdp")
    assert parameter_spec("a/kernel", (66, 1280), 4) == PartitionSpec(None, "fsdp")
    assert parameter_spec("a/kernel", (1280, 66), 4) == PartitionSpec("fsdp", None)
    assert parameter_spec("a/kernel", (641, 1281), 4) == PartitionSpec()
    assert parameter_spec("a/bias", (128,), 4) == PartitionSpec()
    assert parameter_spec("a/kernel", (64, 128), 1) == PartitionSpec()


def test_an_array_is_split_by_the_size_of_its_own_axis_of_the_mesh():
    leaf = jax.ShapeDtypeStruct((66, 64), np.float32)  # 66 is divisible by 2, not by 4
    assert tree_shardings(leaf, mesh_of(2, 4)).spec == PartitionSpec(None, "fsdp")
    assert tree_shardings(leaf, mesh_of(4, 2)).spec == PartitionSpec("fsdp", None)


def test_stacked_layers_are_split_as_each_alone():
    assert parameter_spec("a/blocks/kernel", (12, 64, 128), 4) == PartitionSpec(None, None, "fsdp")
    # Splits neither the axis of layers, though it is the largest, nor arrays small in each layer.
    assert parameter_spec("a/blocks/kernel", (256, 64, 128), 4) == PartitionSpec(None, None, "fsdp")
    assert parameter_spec("a/blocks/kernel", (12, 65, 129), 4) == PartitionSpec(None)
    assert parameter_spec("a/blocks/bias", (64, 1024), 4) == PartitionSpec(None)
    network = dit((8, 8, 1), size="nano", scan=True)
    tree = {"mu": jax.eval_shape(network.init, jax.random.key(0))}
    kernel = tree_shardings(tree, mesh_of(1, 3))["mu"]["blocks"]["mlp"]["contract"]["kernel"]
    assert kernel.spec == PartitionSpec(None)  # [3, 256, 64], of which 3 divides the first alone
    kernel = tree_shardings(tree, mesh_of(1, 4))["mu"]["blocks"]["mlp"]["contract"]["kernel"]
    assert kernel.spec == PartitionSpec(None, "fsdp", None)


def test_mesh_sizes():
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
    assert dict(make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
    for sizes in ((3, 1), (-1, 3), (-1, -1), (4, 1), (0, 8)):
        with pytest.raises(ValueError, match="mesh.data"):
            make_mesh(*sizes)


@dataclass(frozen=True)
class Fake:
    """A device, as far as a mesh reads it."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "fake"


def grid(devices, *sizes):
    return [[device.id for device in row] for row in device_grid(group_by_slice(devices), *sizes)]


def test_data_spans_slices_and_fsdp_stays_inside_of_one_unless_asked():
    # Two slices of two processes of two devices, numbered by the runtime the other way round.
    devices = [Fake(i, process_index=i // 2, slice_index=1 - i // 4) for i in reversed(range(8))]
    assert grid(devices, 8, 1, False) == [[i] for i in range(8)]
    assert grid(devices, 4, 2, False) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grid(devices, 2, 4, False) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid(devices, 1, 8, True) == [[*range(8)]]
    with pytest.raises(ValueError, match=r"mesh.fsdp=8 does not fit into slices .* of 4 device"):
        grid(devices, 1, 8, False)
    three = [Fake(i, i // 2, i // 2) for i in range(6)]
    assert grid(three, 3, 2, False) == grid(three, 3, 2, True) == [[0, 1], [2, 3], [4, 5]]
    for sizes in ((2, 3, True), (2, 3, False)):
        with pytest.raises(ValueError, match=r"use a divisor of 2, or a multiple"):
            grid(three, *sizes)
    with pytest.raises(ValueError, match=r"have \[4, 2\] devices"):
        grid(devices[2:], 6, 1, False)


@dataclass(frozen=True)
class FakeChip(Fake):
    """A chip of a TPU slice, whose place a mesh reads too."""

    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def tpu_slice(kind, rows, columns, layers):
    """The chips of a slice; hosts have 2 x 2 x 1 of them each."""
    places = [(a, b, c) for c in range(layers) for b in range(columns) for a in range(rows)]
    host = lambda a, b, c: a // 2 + rows // 2 * (b // 2 + columns // 2 * c)
    return [FakeChip(i, host(*at), 0, "tpu", kind, at) for i, at in enumerate(places)]


@pytest.mark.parametrize(
    ("kind", "shape", "sizes"),
    [("TPU v4", (2, 2, 4), sizes) for sizes in ((16, 1), (8, 2), (4, 4))]
    + [("TPU v5 lite", (4, 4, 1), sizes) for sizes in ((16, 1), (8, 2))]
    + [("TPU v5", (4, 4, 4), (64, 1))],
)
def test_rows_of_a_tpu_slice_lie_in_the_order_of_their_processes(kind, shape, sizes):
    chips = tpu_slice(kind, *shape)
    found = device_grid(group_by_slice(chips), *sizes, False)
    read = [chip.process_index for chip in found.flat]
    assert read == sorted(read)
    linked = jax.make_mesh(sizes, AXES, devices=chips).devices
    groups = lambda grid: {frozenset(chip.id for chip in group) for group in grid}
    assert groups(found) == groups(linked) and groups(found.T) == groups(linked.T)


def test_fsdp_over_processes_of_a_tpu_slice_follows_the_links():
    chips = tpu_slice("TPU v4", 2, 2, 4)
    found = device_grid(group_by_slice(chips), 2, 8, False)
    np.testing.assert_array_equal(found, jax.make_mesh((2, 8), AXES, devices=chips).devices)


def test_batch_must_divide():
    with pytest.raises(ValueError, match=r"batch_size=100 .* 8 devices .* 96 or 104"):
        check_batch_size(100, mesh_of(8, 1))
    with pytest.raises(ValueError, match=r"8 devices .* x 4 micro_batches; use 96 or 128"):
        check_batch_size(104, mesh_of(8, 1), 4)
    with pytest.raises(ValueError, match="micro_batches=0 must be 1 or more"):
        check_batch_size(96, mesh_of(8, 1), 0)
    check_batch_size(96, mesh_of(8, 1), 3)
