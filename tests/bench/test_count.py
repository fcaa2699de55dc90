import argparse

import jax
import jax.numpy as jnp
import pytest

from bench import count
from bench.cases import CASES, case_config, forward_flops_by_hand
from fewstep.models.dit import SIZES, DiTSize
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.cost.compiled import FOR_INSPECTION
from fewstep.training.experiment import build


@pytest.fixture(autouse=True)
def toy_size(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", DiTSize(64, 2, 4))


def asked(**fields):
    return argparse.Namespace(size="toy", batch_size=64, **fields)


def test_f_is_what_a_forward_pass_computes():
    network = build(case_config(CASES["flow_matching"], "toy", 8)).model.network
    rows = jax.ShapeDtypeStruct((8,), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 32, 32, 4), jnp.float32)
    label = {"label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    params = jax.eval_shape(network.init, jax.random.key(0))
    compiled = jax.jit(network.apply).lower(params, x, rows, rows, label)
    text = compiled.compile(compiler_options=FOR_INSPECTION).as_text()
    assert product_flops(text) == 8 * forward_flops_by_hand("toy")


def test_a_step_is_counted_on_all_devices_together():
    (row,) = count.step_rows(asked(methods=["flow_matching"], meshes=["8x1"]))
    # No gradient goes back to patches and sinusoids, so a little is missing from 3 F.
    assert 0.98 < row["flops"] / (64 * 3 * forward_flops_by_hand("toy")) < 1.0
    assert row["ratio"] == row["least"] == row["goal"] == row["aliased"] == 1.0
    ((kind, reduced),) = row["collectives"].items()
    assert kind == "all-reduce" and reduced["sent"] == 1.75 * reduced["bytes"]
    # The state is the network, Adam's two moments and one average.
    assert 3.99 < row["state_bytes"] / reduced["bytes"] < 4.0


@pytest.mark.some_days(3)
def test_players_that_share_the_fake_score_s_output_cost_a_forward_pass_less():
    methods = ["diff_instruct", "diff_instruct_joint"]
    _, *rows = count.step_rows(asked(methods=methods, meshes=["1x1"]))
    assert [row["ratio"] for row in rows] == pytest.approx([8 / 3, 7 / 3], rel=0.02)


def test_many_sampling_steps_cost_as_many_single_ones():
    rows = list(count.sampling_rows(asked()))
    assert [row["steps"] for row in rows] == [1, 4, 128]
    assert rows[0]["flops"] == 64 * forward_flops_by_hand("toy")
    assert all(row["ratio"] == 1.0 for row in rows)
    # A loop: the program does not grow with the steps.
    assert rows[2]["program_bytes"] < 1.5 * rows[1]["program_bytes"]


def test_what_is_not_known_is_named(capsys):
    for argument, words in (("--parts=step", "is not one of steps"), ("--methods=a", "not one of")):
        with pytest.raises(SystemExit):
            count.main([argument])
        assert words in capsys.readouterr().err
