import jax
import jax.numpy as jnp
import pytest

from bench.cases import JOINT
from fewstep.training.cost import step_cost as cost
from fewstep.training.cost.step_cost import (
    count_flops,
    forward_flops,
    least_seconds,
    network_evaluations,
    step_flops,
    training_seconds,
    unroll,
)
from fewstep.training.experiment import build
from tests.training.runs import small_config, small_experiment
from tests.training.test_networks import config_with


@pytest.mark.in_turn("method", 2)
@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        ("flow_matching", 3.0),
        ("shortcut", 3.5),
        ("ct", 4.0),
        ("cd", 6.0),
        ("sct", 4.0),
        ("scd", 5.0),
        ("live_reflow", 4.0),  # a loop of eight evaluations for an eighth of the rows
        ("sim_flow", 10.0),
        ("sim_flow, joint", 9.0),
        ("diff_instruct_flow", 8.0),
        ("diff_instruct_flow, joint", 7.0),
    ],
)
def test_a_step_costs_so_many_forward_passes(method, evaluations):
    method, _, joint = method.partition(", ")
    config, experiment = small_experiment(method, **(JOINT if joint else {}))
    assert network_evaluations(config, experiment) == pytest.approx(evaluations, rel=0.03)


def test_blocks_under_a_loop_cost_what_they_stand_for():
    config, experiment = small_experiment("flow_matching", **{"model.scan": True})
    evaluations = [network_evaluations(config, experiment) for _ in range(2)]
    assert evaluations == pytest.approx([3.0, 3.0], rel=0.06)
    assert config.model.scan


def test_a_network_without_loops_or_attention_is_counted_as_it_is():
    config = config_with("mlp")
    experiment = build(config)
    assert unroll(config, experiment) is experiment
    assert network_evaluations(config, experiment) == pytest.approx(3.0, rel=0.1)


def test_attention_in_chunks_costs_what_it_stands_for():
    costs = [
        step_flops(*small_experiment("flow_matching", **{"model.attention": attention}))
        for attention in ("xla", "chunked")
    ]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(("dtype", "tflops"), [("bfloat16", 989.0), ("float32", 494.5)])
def test_the_least_time_of_a_step_is_its_flops_at_the_peak_of_all_devices(dtype, tflops):
    config, experiment = small_experiment("flow_matching", **{"model.dtype": dtype})
    seconds = least_seconds(config, "NVIDIA H100 80GB HBM3", 16)
    assert seconds * 16 * tflops * 1e12 == pytest.approx(step_flops(config, experiment))


def test_the_least_time_of_a_step_is_without_what_remat_computes_again():
    steps = [small_experiment("flow_matching", **{"model.remat": remat}) for remat in (False, True)]
    kept, again = (step_flops(*step) for step in steps)
    assert again / kept == pytest.approx(4 / 3, rel=0.03)
    kept, again = (least_seconds(config, "NVIDIA H200", 8) for config, _ in steps)
    assert kept == again
    assert steps[1][0].model.remat


def test_without_a_known_peak_nothing_is_counted(monkeypatch):
    def refuse(*_):
        raise AssertionError("counted")

    monkeypatch.setattr(cost, "step_flops", refuse)
    for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert least_seconds(None, kind, 8) is None


def test_without_a_cpu_nothing_is_counted(monkeypatch):
    present = jax.local_devices()

    def none(backend=None):
        if backend is None:
            return present
        raise RuntimeError("Unknown backend cpu")  # as with JAX_PLATFORMS=cuda

    monkeypatch.setattr(cost.jax, "local_devices", none)
    config, experiment = small_experiment("edm")
    with pytest.raises(ValueError, match="started without one; unset JAX_PLATFORMS"):
        step_flops(config, experiment)
    assert least_seconds(config, "NVIDIA H100 80GB HBM3", 8) is None


def test_fused_attention_costs_what_it_stands_for():
    # XLA counts neither a cuDNN kernel, which no CPU compiles, nor a loop over chunks in full.
    config, experiment = small_experiment("flow_matching", **{"model.attention": "chunked"})
    config.model.attention = "cudnn"
    assert step_flops(config, experiment) == step_flops(*small_experiment("flow_matching"))


@pytest.mark.some_days(2)
def test_a_player_that_is_updated_at_times_costs_in_proportion():
    def cost(updates, micro_batches=1):
        fields = {"objective.fake_score_updates": updates, "micro_batches": micro_batches}
        config, experiment = small_experiment("dmd_flow", **fields)
        return step_flops(config, experiment) / forward_flops(config, experiment)

    # The samples, the fake score's 3 passes and the generator's 2 + 2, or a fifth of these.
    assert cost(1) == pytest.approx(8.0, rel=0.06)
    assert cost(5) == pytest.approx(4.8, rel=0.06)
    # In micro-batches each player makes its own samples.
    assert cost(5, 4) == pytest.approx(5.0, rel=0.06)


def test_seconds_are_those_of_the_logged_speed():
    rows = [
        {"step": 10, "images_per_second": 100.0},
        {"step": 10, "evaluate/frechet_1": 1.0},
        {"step": 30, "images_per_second": 50.0},
        {"step": 50, "images_per_second": 1.0},
    ]
    assert training_seconds(rows, 30, batch_size=20) == pytest.approx(2.0 + 8.0)
    assert training_seconds([], 30, batch_size=20) is None


def test_the_steps_of_a_path_are_counted_one_by_one():
    """A step of a path is a forward pass, computed again for its gradient, and a backward pass.

    Its rows share their time, which is embedded once, so that is less than four passes.
    """

    def evaluations(steps):
        config = small_config("dis", **{"objective.path_steps": steps, "model.width": 256})
        return network_evaluations(config, build(config))

    four, eight = evaluations(4), evaluations(8)
    assert eight == pytest.approx(2 * four, rel=0.05)
    assert 1.0 * 4 < four < 3.0 * 4


def test_loops_within_loops_and_branches_are_counted():
    a = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    product = count_flops(lambda x: x @ x, a)

    def nested(x):
        inner = lambda x, _: (x @ x, None)
        outer = lambda x, _: (jax.lax.scan(inner, x, length=3)[0], None)
        x = jax.lax.scan(outer, x, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.scan(inner, x, length=7)[0], jnp.sin, x)

    assert count_flops(nested, a) == pytest.approx((15 + 7) * product, rel=0.02)
