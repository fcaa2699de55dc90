import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from fewstep.training import profile as module
from fewstep.training.profile import Profile, Window, check_window
from fewstep.training.schedule import Schedule
from tests.training.test_loop import run


@pytest.mark.parametrize(("window", "done"), [((0, 1), 0), ((4, 9), 4), ((9, 10), 0)])
def test_a_window_in_the_remaining_steps_is_taken(window, done):
    check_window(Window(*window), done, 10)


@pytest.mark.parametrize(
    ("window", "done", "message"),
    [
        ((5, 5), 0, "--profile=5:5 must be START:STOP with 0 <= START < STOP; 5:8 traces three"),
        ((7, 3), 0, "--profile=7:3 must be START:STOP"),
        ((3, 5), 4, "--profile=3:5 does not lie in the remaining steps 4:10; choose others"),
        ((8, 11), 4, "--profile=8:11 does not lie in the remaining steps 4:10"),
        ((10, 12), 10, "does not lie in the remaining steps 10:10; the run is complete"),
    ],
)
def test_a_window_that_cannot_be_traced_is_refused(window, done, message):
    with pytest.raises(ValueError, match=message):
        check_window(Window(*window), done, 10)


@pytest.mark.parametrize("dispatch", [1, 2])
def test_exactly_the_steps_of_the_window_are_traced(tmp_path, monkeypatch, capsys, dispatch):
    seen = []
    monkeypatch.setattr(
        module.jax.profiler, "start_trace", lambda folder, **_: seen.append(str(folder))
    )
    monkeypatch.setattr(module.jax.profiler, "stop_trace", lambda: seen.append("stop"))
    monkeypatch.setattr(
        module.jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: seen.append(step_num) or module.nullcontext(),
    )
    run(tmp_path, Schedule(steps=7, save=4, dispatch=dispatch, window=Window(3, 5)))
    folder = tmp_path / "profile" / "3-5" / "0"
    assert seen == [str(folder), 3, 4, "stop"]
    assert f"profile of steps 4 to 5: {folder}; open it by tensorboard" in capsys.readouterr().err


def test_a_run_that_ends_within_the_window_writes_what_there_is(tmp_path):
    with pytest.raises(KeyError), Profile(tmp_path, Window(2, 9)) as profile:
        assert not profile.begins(1) and profile.begins(2)
        profile.begin()
        with profile.step(2):
            jax.block_until_ready(jax.jit(jnp.sum)(jnp.ones(8)))
        raise KeyError
    (trace,) = tmp_path.glob("profile/2-9/0/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "train" in {event.get("name") for event in events}
    with jax.profiler.trace(tmp_path / "again"):  # none runs any more
        pass
