"""A run that is continued with other steps keeps a record of what its schedule did."""

import pytest

from fewstep.training.storage import identity, workdir
from fewstep.training.storage.lengths import Length, describe_lengths, next_lengths
from tests.training.runs import save_run, small_config

COSINE = {"optimizer.schedule": "cosine"}
REWARM = {"continued.schedule": "rewarm", "continued.scale": 0.5}


def fields(**given):
    """All fields by dotted name."""
    return identity.Identity("", identity.as_dict(small_config("edm", **given))).fields


FIRST = Length(0, 10)


@pytest.mark.parametrize(
    ("before", "given", "done", "after"),
    [
        ([], {"steps": 10} | REWARM, 10, []),  # the same length
        ([], {"steps": 20}, 10, []),  # refused elsewhere
        ([], {"steps": 20} | REWARM, 10, [FIRST, Length(10, 20, "rewarm", 0.5)]),
        ([], {"steps": 20, "continued.schedule": "extend"}, 4, [FIRST, Length(4, 20, "extend")]),
        (  # no step has followed the second length, so it is replaced
            [FIRST, Length(10, 30, "hold", 0.1)],
            {"steps": 20} | REWARM,
            10,
            [FIRST, Length(10, 20, "rewarm", 0.5)],
        ),
        (
            [FIRST, Length(5, 15, "extend")],
            {"steps": 20} | REWARM,
            15,
            [FIRST, Length(5, 15, "extend"), Length(15, 20, "rewarm", 0.5)],
        ),
    ],
)
def test_each_length_is_added_from_the_step_that_the_run_has_reached(before, given, done, after):
    old = fields(**COSINE, steps=before[-1].steps if before else 10)
    assert next_lengths(before, old, fields(**COSINE | given), done) == after
    constant = {"optimizer.schedule": "constant"}
    assert next_lengths([], fields(**constant), fields(**constant | given), done) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"continued.schedule": "hold"}, "continued.schedule=hold needs continued.scale"),
        ({**REWARM, "continued.schedule": "extend"}, "continued.scale is not used by .*=extend"),
        ({**REWARM, "steps": 8}, "steps=8 is not above 10, the step that the run has reached"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        next_lengths([], fields(**COSINE), fields(**COSINE | {"steps": 20} | given), 10)


def test_a_run_is_continued_by_a_field_and_never_silently(tmp_path, no_blocks):
    save_run(tmp_path, "edm", steps=(10,), **COSINE)
    longer = COSINE | {"steps": 20}
    with pytest.raises(ValueError) as error:
        workdir.start_run(tmp_path, small_config("edm", **longer))
    assert (
        "steps (10 there, 20 now). It keeps steps, since the cosine schedule depends on steps. "
        "Say what the learning rate does in the steps after that by "
        "--config.continued.schedule=extend, hold or rewarm (docs/running.md), or start a new run "
        "from its networks: "
        f"--from={tmp_path} --workdir={tmp_path}_2"
    ) in str(error.value)
    run = workdir.start_run(tmp_path, small_config("edm", **longer | REWARM))
    assert run.lengths == [FIRST, Length(10, 20, "rewarm", 0.5)]
    again = small_config("edm", **longer)  # it may say so again, or leave it out
    assert workdir.start_run(tmp_path, again).lengths == run.lengths
    assert identity.read_identity(tmp_path).lengths == run.lengths
    other = longer | {"continued.schedule": "extend"}
    with pytest.raises(ValueError, match=r"continued.schedule \(rewarm there, extend now\)"):
        workdir.start_run(tmp_path, small_config("edm", **other))
    assert describe_lengths(run.lengths) == (
        "10 steps, from step 10 on rewarm (0.5 of the learning rate) up to 20"
    )


def test_a_curriculum_keeps_its_length_whatever_the_schedule(tmp_path):
    save_run(tmp_path, "ect", steps=(10,), **COSINE)
    longer = small_config("ect", steps=20, **COSINE | REWARM)
    message = "objective.total_steps is the number of steps. To train its networks .* --from="
    with pytest.raises(ValueError, match=message):
        workdir.start_run(tmp_path, longer)
