"""Every field of a config reaches the places that it is for, and no other.

Training runs up to its loop, with recorders in the place of what is costly (recorded.py). Each
field then takes another value, and the places that see a difference are compared with a table.
"""

import pytest

from configs import base
from tests.modes.recorded import recorded
from training import workdir

NOISE = {"path.name": "ve", "prediction.kind": "F"}
SPIKES = {"optimizer.spike_factor": 3.0}
# Where a field may be seen:
#   network   the arguments of the network           data      of the data set
#   host      batches as they leave the host         images    and as the step reads them
#   start     the initial state                      step      one training step
#   loop      the numbers that the loop is given     samples   how evaluations sample, and what
#   measures  what samples are measured with         results   what evaluations say of themselves
#   teacher   which network of which run             pairs     how the teacher's pairs are made
# A third entry: fields beside which alone it means something.
FIELDS = {
    "method": ("another", "results"),
    "seed": (1, "host images start step loop samples results"),
    "steps": (20, "loop"),
    "batch_size": (128, "host images step loop results"),
    "micro_batches": (2, "step loop"),
    "steps_per_dispatch": (3, "loop"),
    "data.name": ("another", "data results"),
    "data.dir": ("elsewhere", "data measures"),
    "data.image_size": (4, "network data host images step samples measures"),
    "data.channels": (3, "network data host images step samples measures"),
    "data.num_classes": (0, "network samples measures"),
    "data.flip": (True, "host images"),
    "data.on_device": (True, "host"),
    "model.size": ("micro", "network"),
    "model.patch_size": (4, "network"),
    "model.second_time": ("time", "network"),
    "model.guidance_input": (True, "network"),
    "model.loss_weight": (True, "network"),
    "model.time_scale": (4.0, "network"),
    "model.dropout": (0.1, "network"),
    "model.dtype": ("bfloat16", "network"),
    "model.attention": ("auto", "network"),
    "model.remat": (True, "network"),
    "model.scan": (True, "network"),
    "path.name": ("vp_cosine", "step"),
    "path.sigma_data": (0.25, "step", {"path.name": "trigflow"}),
    "path.sigma_min": (0.1, "step", NOISE),
    "path.sigma_max": (70.0, "step", NOISE),
    "path.beta_min": (0.2, "step", {"path.name": "vp_ddpm"}),
    "path.beta_max": (19.0, "step", {"path.name": "vp_ddpm"}),
    "prediction.kind": ("v", "step"),
    "prediction.sigma_data": (0.25, "step", {"prediction.kind": "F"}),
    "optimizer.name": ("radam", "step"),
    "optimizer.learning_rate": (0.5, "step"),
    "optimizer.schedule": ("linear", "step"),
    "optimizer.warmup_steps": (2, "step"),
    "optimizer.b1": (0.5, "step"),
    "optimizer.b2": (0.5, "step"),
    "optimizer.eps": (0.5, "step"),
    "optimizer.weight_decay": (0.5, "step"),
    "optimizer.clip_norm": (0.5, "step"),
    "optimizer.spike_factor": (3.0, "start step loop"),
    "optimizer.spike_window": (64, "start step", SPIKES),
    "optimizer.spike_cap": (5, "loop", SPIKES),
    "ema.decays": ((0.5, 0.9), "start step samples results"),
    "ema.warmup": (False, "step"),
    "ema.power_stds": ((0.1,), "start step"),
    "ema.sample_with": ("network", "samples results"),
    "mesh.data": (4, "step loop samples measures", {"mesh.data": 8, "mesh.fsdp": -1}),
    "mesh.fsdp": (2, "step loop samples measures"),
    "checkpoint.every": (7, "loop"),
    "checkpoint.keep": (5, "loop"),
    "checkpoint.keep_hours": (2.0, "loop"),
    "checkpoint.keep_best": ("frechet_1", "loop", {"evaluate.every": 5}),
    "checkpoint.keep_steps": ((3,), "loop"),
    "watchdog.seconds": (7.0, "loop"),
    "watchdog.factor": (7.0, "loop"),
    "watchdog.exit_after": (7.0, "loop"),
    "log.every": (7, "loop"),
    "evaluate.every": (6, "loop"),
    "evaluate.steps": ((1, 4), "samples results"),
    "evaluate.features": ("classifier", "measures"),
    "evaluate.weights": ("file", "measures"),
    "evaluate.reference": ("all", "measures"),
    "evaluate.agreement": (True, "measures"),
    "evaluate.num_samples": (30, "samples measures"),
    "evaluate.batch_size": (32, "samples measures"),
    "evaluate.guidance_scale": (1.5, "samples results"),
}
# What a run without a teacher does not see: these, in a run with one.
TAUGHT = {
    "seed": (1, "host images start step loop samples results"),
    "teacher": ("second@5", "teacher"),
    "teacher_network": ("network", "teacher"),
    "start_from_teacher": (False, "start"),
    "pairs.count": (60, "pairs host images"),
    "pairs.steps": (3, "pairs"),
    "data.flip": (True, ""),
    "evaluate.batch_size": (32, "samples measures pairs"),
    "evaluate.steps": ((1, 2), "samples results"),
    "objective.guidance_scale": (2.0, "step pairs samples results"),
}
ELSEWHERE = {
    "compilation_cache": "of the process, not of the run: tests/modes/test_compilation_cache.py",
    "debug": "sets other fields: tests/training/test_experiment.py",
    "model.name": "one network alone takes images",
}
PLAIN = {
    "data.image_size": 0,
    "data.channels": 0,
    "data.num_classes": -1,
    "evaluate.steps": (1, 2),
    "evaluate.num_samples": 20,
    "evaluate.batch_size": 16,
}
DISTILLED = PLAIN | {
    "evaluate.steps": (1,),
    "teacher": "first",
    "objective.regression_weight": 0.25,
    "pairs.count": 50,
}


@pytest.fixture(scope="module")
def observe(tmp_path_factory):
    """A function of a method and its fields: {place: what is seen there}, recorded once."""
    seen = {}

    def observe(method, fields):
        key = repr((method, sorted(fields.items())))
        if key not in seen:
            with pytest.MonkeyPatch.context() as patch:
                seen[key] = recorded(patch, tmp_path_factory.mktemp("runs"), method, fields)
        return seen[key]

    return observe


def check(observe, method, fields, field, value, places):
    """Assert that a field is seen in these places, and in no other."""
    one, other = observe(method, fields), observe(method, fields | {field: value})
    assert {p for p in one.keys() | other.keys() if one.get(p) != other.get(p)} == set(
        places.split()
    )


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_seen_where_it_belongs_and_nowhere_else(observe, field):
    value, places, *beside = FIELDS[field]
    check(observe, "flow_matching", PLAIN | dict(*beside), field, value, places)


@pytest.mark.parametrize("field", TAUGHT)
def test_a_field_of_a_run_with_a_teacher_is_seen_where_it_belongs(observe, field):
    check(observe, "dmd", DISTILLED, field, *TAUGHT[field])


def test_the_length_of_a_run_is_that_of_its_schedule(observe):
    check(
        observe, "flow_matching", PLAIN | {"optimizer.schedule": "cosine"}, "steps", 20, "step loop"
    )


def test_every_field_is_in_a_table():
    fields = set(workdir.flat(workdir.as_dict(base.config())))
    assert fields == {f for f in (*FIELDS, *TAUGHT, *ELSEWHERE) if not f.startswith("objective.")}
