"""Which promises count as kept, for interruptions made up by hand."""

import random
import signal

import pytest

from fewstep.training.cluster import exits
from tests.training import interruption, killed
from tests.training.interruption import (
    Interruption,
    ended_before_signal,
    hit_restored_run,
    kept_promises,
)

# A stop in the middle of a run that had been restored from step 4: it began 6, and 6 is saved.
STOP = Interruption(
    number=signal.SIGTERM,
    phase="between two checkpoints",
    code=exits.PREEMPTED,
    before=[2, 4],
    after=[4, 6],
    sent=6,
    begun=6,
    own=1,
    finished=False,
)
KILL = STOP._replace(number=signal.SIGKILL, code=-signal.SIGKILL, after=[2, 4])
# The run was over when the signal came.
LATE = {"code": 0, "after": [10, 12], "sent": 12, "begun": 12, "finished": True}


def broken_promises(one):
    return {promise for promise, kept in kept_promises(one).items() if not kept}


def test_promises_of_a_stop_and_of_a_kill():
    assert set(kept_promises(STOP)) == {
        "exit code as promised",
        "newest checkpoint kept",
        "its step saved",
    }
    assert set(kept_promises(KILL)) == {"exit code as promised", "newest checkpoint kept"}
    for one in (STOP, KILL):
        assert not broken_promises(one) and not ended_before_signal(one) and hit_restored_run(one)


@pytest.mark.parametrize("code", [0, -signal.SIGTERM, -signal.SIGKILL, 1, exits.PEER_DIED, None])
def test_a_stop_ends_with_its_own_code(code):
    # A process without a handler ends with -SIGTERM.
    assert broken_promises(STOP._replace(code=code)) == {"exit code as promised"}


def test_a_stop_leaves_the_step_that_it_had_begun():
    assert broken_promises(STOP._replace(after=[2, 4])) == {"its step saved"}
    assert broken_promises(STOP._replace(begun=7)) == {"its step saved"}
    # A batch of another step than the restored one's.
    assert broken_promises(STOP._replace(begun=2)) == {"its step saved"}
    # Before the first step of its own there is nothing to save beside what there was.
    waiting = STOP._replace(sent=0, begun=0, own=0, after=[2, 4])
    assert not broken_promises(waiting)
    assert not broken_promises(waiting._replace(before=[], after=[]))
    assert broken_promises(waiting._replace(after=[2])) == {
        "newest checkpoint kept",
        "its step saved",
    }


def test_no_kill_loses_the_newest_checkpoint():
    assert broken_promises(KILL._replace(after=[2])) == {"newest checkpoint kept"}
    assert broken_promises(KILL._replace(after=[])) == {"newest checkpoint kept"}
    assert not broken_promises(KILL._replace(after=[4]))  # `keep` removed an older one
    assert broken_promises(KILL._replace(code=0)) == {"exit code as promised"}


def test_a_signal_to_a_finished_run_is_missed_and_an_ignored_one_is_not():
    assert ended_before_signal(STOP._replace(**LATE)) and ended_before_signal(KILL._replace(**LATE))
    # Restored at the last step: no step is left to begin.
    restored = STOP._replace(**{**LATE, "before": [10, 12], "sent": 0, "begun": 0})
    assert ended_before_signal(restored)
    ignored = STOP._replace(**{**LATE, "sent": 11})
    assert not ended_before_signal(ignored) and "exit code as promised" in broken_promises(ignored)


def test_a_restored_run_has_a_checkpoint_and_a_step_of_its_own():
    assert not hit_restored_run(KILL._replace(before=[]))
    assert not hit_restored_run(KILL._replace(own=0))


class Process:
    pid = 5


def test_steps_are_counted_of_the_process_alone(tmp_path):
    process = Process()
    assert killed.begun_steps(tmp_path, process) == []
    (tmp_path / killed.BEGUN).write_text("4 0\n4 1\n4 2\n5 0\n5 3\n")
    assert killed.begun_steps(tmp_path, process) == [0, 3]
    process.pid = 4
    assert killed.begun_steps(tmp_path, process) == [0, 1, 2]


@pytest.mark.some_days(2)
def test_a_kill_and_a_stop_meet_one_run(tmp_path):
    rng = random.Random(3)
    kill = interruption.interrupt(tmp_path / "cut", "edm", signal.SIGKILL, rng, steps=4)
    stop = interruption.interrupt(tmp_path / "cut", "edm", signal.SIGTERM, rng, steps=2)
    for one in (kill, stop):
        assert not ended_before_signal(one) and not broken_promises(one)
    assert hit_restored_run(stop) and not hit_restored_run(kill)
    killed.run_process(tmp_path / "cut", "edm", {}, **interruption.OPTIONS)
    killed.run_process(tmp_path / "whole", "edm", {}, **interruption.OPTIONS)
    finals = (killed.final_state(tmp_path / name) for name in ("cut", "whole"))
    assert killed.have_same_bits(*finals)
    assert len(killed.saved_steps(tmp_path / "cut")) == interruption.OPTIONS["keep"]
