import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fewstep.models.dit import SIZES, DiTSize
from fewstep.training.compiled_step import compile_step, create_state
from fewstep.training.cost.compiled import (
    FOR_INSPECTION,
    Collective,
    collectives,
    device_bytes,
    lowered_step,
    memory_plan,
    step_inputs,
    traced_step,
)
from fewstep.training.cost.hardware import Hardware
from fewstep.training.cost.memory import traced_memory
from fewstep.training.experiment import build, build_on
from tests.modes.recorded import random_network
from tests.training.runs import small_config, small_experiment
from tests.training.test_sharding import mesh_of

BATCH, WIDTH, DEPTH = 1024, 64, 2


@functools.cache
def traced(data, fsdp, remat=False, scan=False):
    """The traced flow-matching step of a DiT with two blocks, its experiment and its inputs."""
    SIZES["two_blocks"] = DiTSize(WIDTH, DEPTH, 4)
    try:
        fields = {"model.size": "two_blocks", "model.remat": remat, "model.scan": scan}
        config, mesh = (
            small_config("flow_matching", batch_size=BATCH, **fields),
            mesh_of(data, fsdp),
        )
        experiment = build_on(config, mesh)
    finally:
        del SIZES["two_blocks"]
    inputs = step_inputs(config, experiment, mesh)
    return traced_step(config, experiment, mesh, inputs), experiment, inputs


@functools.cache
def compiled(*mesh, **fields):
    """The compiled step of `traced`, and its inputs."""
    step, _, inputs = traced(*mesh, **fields)
    return step.lower().compile(compiler_options=FOR_INSPECTION), inputs


@pytest.mark.parametrize("case", [(8, 1), (1, 8), (8, 1, True)], ids=["data", "fsdp", "remat"])
@pytest.mark.some_days(3)
def test_the_estimate_before_compilation_is_near_what_xla_plans(case):
    found = traced_memory(*traced(*case), Hardware(mesh_of(*case[:2]), "cpu", False, None))
    needs = memory_plan(compiled(*case)[0])
    assert found.given == pytest.approx(needs.arguments, rel=0.01)
    assert found.temporary == pytest.approx(needs.temporary, rel=0.3)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_what_is_looked_at_is_the_step_that_is_trained(micro_batches):
    fields = {"seed": 3, "micro_batches": micro_batches, "batch_size": 32}
    config, mesh = small_config("flow_matching", **fields), mesh_of(2, 2)
    experiment = build(config, random_network((8, 8, 1)))
    inputs = step_inputs(config, experiment, mesh)
    objective, optimizers = experiment.objective, experiment.optimizers
    step = compile_step(objective, optimizers, 3, mesh, micro_batches)
    lowered = lowered_step(config, experiment, mesh, inputs)
    assert lowered.as_text() == step.lower(*inputs).as_text()


def exchanged(step):
    return {(c.kind, c.devices): c for c in collectives(step.as_text())}


def bytes_of(leaves):
    return sum(4 * leaf.size for leaf in leaves)


def test_data_parallel_reduces_the_gradient_once():
    step, inputs = compiled(8, 1)
    found = exchanged(step)
    assert set(found) == {("all-reduce", 8)}
    reduced = found["all-reduce", 8]
    # Besides the gradient a few scalar metrics are reduced.
    scalars = reduced.bytes - bytes_of(jax.tree.leaves(inputs.state.networks))
    assert 0 <= scalars < 256
    assert reduced.sent == 2 * 7 / 8 * reduced.bytes


def test_fsdp_gathers_each_split_parameter_and_reduces_the_gradient():
    step, inputs = compiled(1, 8)
    found = exchanged(step)
    leaves = jax.tree.leaves(inputs.state.networks)
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    assert 0.9 < bytes_of(split) / bytes_of(leaves) < 1.0
    assert found["all-gather", 8].bytes == bytes_of(split)
    # Backends for accelerators turn these into reduce-scatters of the same bytes.
    reduced = [c for c in found.values() if c.kind in ("all-reduce", "reduce-scatter")]
    assert 0 <= sum(c.bytes for c in reduced) - bytes_of(leaves) < 256


def test_fsdp_gathers_the_layers_of_a_loop_forwards_and_backwards():
    step, inputs = compiled(1, 8, scan=True)
    leaves = jax.tree.leaves(inputs.state.networks)
    split = bytes_of(leaf for leaf in leaves if not leaf.sharding.is_fully_replicated)
    found = exchanged(step)
    assert split <= found["all-gather", 8].bytes <= 2 * split
    # The activations of all rows would be many times the parameters.
    assert sum(c.bytes for c in found.values()) < 3.2 * bytes_of(leaves)


def test_state_is_donated_and_what_is_given_adds_up():
    for mesh in ((8, 1), (1, 8)):
        step, inputs = compiled(*mesh)
        needs = memory_plan(step)
        assert needs.arguments == sum(map(device_bytes, inputs))
        assert needs.aliased == device_bytes(inputs.state)
        assert 0 < needs.added - needs.temporary < 4096  # metrics, and a table of all outputs


def test_bytes_of_a_device_are_those_of_its_shards():
    config, experiment = small_experiment()
    mesh = mesh_of(2, 4)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, mesh)
    shards = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    assert device_bytes(step_inputs(config, experiment, mesh).state) == sum(shards)
    assert sum(shards) < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_rematerialisation_takes_less_temporary_memory():
    without, remat = (memory_plan(compiled(8, 1, remat)[0]) for remat in (False, True))
    assert remat.temporary < 0.8 * without.temporary
    assert remat.arguments == without.arguments


def test_a_scanned_collective_counts_at_every_turn_and_a_branch_is_marked():
    mesh = mesh_of(8, 1)
    step = lambda c: jnp.tanh(jax.lax.psum(c, "data"))

    def function(x, flag):
        x = jax.lax.scan(lambda c, _: (step(c), None), x, length=5)[0]
        x = jax.lax.while_loop(lambda c: c[0] < 0.5, lambda c: step(c) + 0.1, x)
        return jax.lax.cond(flag, step, lambda c: c, x)

    sharded = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(),) * 2,
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    text = jax.jit(sharded).lower(jnp.zeros(16), jnp.bool_(True)).compile().as_text()
    assert collectives(text) == [
        Collective("all-reduce", 8, 5, 5 * 64),
        Collective("all-reduce", 8, 1, 64, uncounted=True),
        Collective("all-reduce", 8, 1, 64, conditional=True),
    ]


# Text of other backends and versions, which are not available here.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%scatter (p.1: bf16[64]) -> bf16[16] {
  %p.1 = bf16[64]{0} parameter(0)
  ROOT %rs = bf16[16]{0} reduce-scatter(%p.1), replica_groups=[2,4]<=[2,4], dimensions={0}
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %h = f32[8,4]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %g = f32[8,16]{1,0:T(8,128)} all-gather(%h), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %h)
}

%condition (t.1: (s32[], f32[8,4])) -> pred[] {
  %t.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%taken (p.2: f32[8,4]) -> f32[8,4] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  ROOT %permuted = f32[8,4]{1,0} collective-permute(%p.2), source_target_pairs={{0,1},{1,0}}
}

%skipped (p.3: f32[8,4]) -> f32[8,4] {
  ROOT %p.3 = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (a: f32[8,4], b: bf16[64], c: pred[]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[64]{0} parameter(1)
  %c = pred[] parameter(2)
  %r = (f32[8,4], /*index=1*/bf16[64]) all-reduce(%a, /*index=1*/%b), replica_groups={{0,1},{2,3}}
  %all = f32[8,4]{1,0} all-reduce(%a), replica_groups={}, to_apply=%add
  %p = f32[8,4] all-reduce(%a), replica_groups=mesh['x'=2,'y'=4], device_ids=([8]) {'x', 'y':(2)2}
  %s = ((f32[8,4]), (f32[64,4])) all-gather-start(%a), replica_groups=mesh['x'=2,'y'=4] {'x', 'y'}
  %done = f32[64,4]{1,0} all-gather-done(%s)
  %async = ((bf16[64]{0}), bf16[16]{0}, u32[]) async-start(%b), calls=%scatter
  %wait = bf16[16]{0} async-done(%async), calls=%scatter
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,4]{1,0}) tuple(%zero, %a)
  %w = (s32[], f32[8,4]) while(%init), body=%body, backend_config={"known_trip_count":{"n":"28"}}
  %forever = (s32[], f32[8,4]) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,4] conditional(%c, %a, %a), true_computation=%taken, false_computation=%skipped
}
"""


def test_every_form_of_collective_is_read():
    assert collectives(TEXT) == [
        Collective("all-reduce", 2, 1, 128 + 128),  # both operands, one of them bf16
        Collective("all-reduce", 4, 1, 128),
        Collective("all-reduce", 8, 1, 128),
        Collective("all-gather", 4, 28, 28 * 512),
        Collective("all-gather", 4, 1, 512, uncounted=True),
        Collective("all-gather", 8, 1, 1024),
        Collective("reduce-scatter", 4, 1, 128),
        Collective("collective-permute", 1, 1, 128, conditional=True),
    ]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 1.5), ("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-to-all", 0.75)],
)
def test_a_ring_sends_all_but_the_own_part(kind, sent):
    assert Collective(kind, 4, 1, 1000).sent == sent * 1000
    assert Collective(kind, 1, 1, 1000).sent == 0.0
