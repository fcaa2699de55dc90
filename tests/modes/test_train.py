"""Every field of a config reaches the places that need it, and no others.

Training runs up to its loop, with recorders in place of costly functions (recorded.py). Then each
field takes another value, and a table says which places must see a difference.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep.configs import base, digits
from fewstep.configs.methods import TEACHERS
from fewstep.models.dit import SIZES
from fewstep.modes import job as JOB
from fewstep.modes.request import Request
from fewstep.training import compiled_step as COMPILED_STEP
from fewstep.training.step import train_step
from fewstep.training.storage.identity import as_dict, flatten_fields
from tests.modes.recorded import TRAIN, job_of, record_run
from tests.networks import NO_BLOCKS
from tests.training.runs import save_run, small_config, small_experiment

NOISE = {"path.name": "ve", "prediction.kind": "F"}
SPIKES = {"optimizer.spike_factor": 3.0}
# The places that may see a field:
#   network.FIELD   an argument of the network       data.FIELD      of the data set
#   host            batches as they leave the host   images          and as the step reads them
#   start           the initial state                step            one training step
#   loop.NUMBER     an argument of the loop          sampler.FIELD   an argument of a sampler
#   samples.WHAT    an input of the sampler          way.FIELD       the same for one trajectory
#   measures.FIELD  how samples are measured         results.FIELD   what evaluations record
#   teacher.FIELD   which network of which run       pairs.FIELD     how pairs are made
#   kept.RULE       which checkpoints stay           copied.to       where images are copied
# The third entry, if any: other fields that the field needs to have an effect.
FIELDS = {
    "method": ("another", "results.method"),
    "seed": (1, "host images loop.seed results.seed sampler.seed start step"),
    "steps": (20, "loop.steps"),
    "batch_size": (128, "host images loop.batch_size results.images_seen step"),
    "micro_batches": (2, "loop.micro_batches step"),
    "steps_per_dispatch": (3, "loop.dispatch"),
    "data.name": ("another", "data.name results.data"),
    "data.dir": ("elsewhere", "data.dir measures.root"),
    "data.local_dir": ("own", "copied.to"),
    "data.image_size": (
        4,
        "data.image_size network.shape host images step sampler.shape measures.shape "
        "results.training_data",
    ),
    "data.channels": (
        3,
        "data.channels network.shape host images step sampler.shape measures.shape "
        "results.training_data",
    ),
    "data.num_classes": (
        0,
        "network.num_classes samples.labels way.label measures.num_classes measures.labels",
    ),
    "data.label_shares": ("equal", "samples.labels way.label measures.labels"),
    "data.flip": (True, "host images"),
    "data.on_device": (True, "host"),
    "model.size": ("micro", "network.size"),
    "model.patch_size": (4, "network.patch_size"),
    "model.second_time": ("time", "network.second_time"),
    "model.guidance_input": (True, "network.guidance_input"),
    "model.guidance_interval": (True, "network.guidance_interval"),
    "model.trajectory": (2, "network.trajectory"),
    "model.loss_weight": (True, "network.loss_weight"),
    "model.time_scale": (4.0, "network.time_scale"),
    "model.dropout": (0.1, "network.dropout"),
    "model.dtype": ("bfloat16", "network.dtype"),
    "model.attention": ("auto", "network.attention"),
    "model.remat": (True, "network.remat"),
    "model.adaln_zero": (False, "network.adaln_zero"),
    "model.scan": (True, "network.scan"),
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
    "optimizer.spike_factor": (3.0, "loop.spikes start step"),
    "optimizer.spike_window": (64, "start step", SPIKES),
    "optimizer.spike_cap": (5, "loop.spikes", SPIKES),
    "ema.decays": ((0.5, 0.9), "start step results.network samples.network way.network"),
    "ema.warmup": (False, "step"),
    "ema.power_stds": ((0.1,), "start step"),
    "ema.sample_with": ("network", "results.network samples.network way.network"),
    "mesh.data": (
        4,
        "loop.mesh sampler.mesh measures.mesh step",
        {"mesh.data": 8, "mesh.fsdp": -1},
    ),
    "mesh.fsdp": (2, "loop.mesh sampler.mesh measures.mesh step"),
    "checkpoint.every": (7, "loop.save"),
    "checkpoint.keep": (5, "kept.newest"),
    "checkpoint.keep_hours": (2.0, "kept.hours"),
    "checkpoint.keep_best": ("frechet_1", "kept.scores", {"evaluate.every": 5}),
    "checkpoint.keep_steps": ((3,), "kept.steps loop.kept"),
    "watchdog.seconds": (7.0, "loop.seconds"),
    "watchdog.factor": (7.0, "loop.factor"),
    "watchdog.exit_after": (7.0, "loop.exit_after"),
    "watchdog.disk_speed": (7.0, "loop.disk_speed"),
    "log.every": (7, "loop.log"),
    "log.to": (("csv",), "loop.log_to"),
    "evaluate.every": (6, "loop.evaluate"),
    "evaluate.steps": ((1, 4), "results.steps sampler.steps way.steps"),
    "evaluate.features": ("classifier", "measures.features"),
    "evaluate.weights": ("file", "measures.weights"),
    "evaluate.reference": ("all", "measures.reference"),
    "evaluate.agreement": (True, "measures.agreement"),
    "evaluate.num_samples": (25, "samples.labels measures.samples"),
    "evaluate.final_samples": (30, "samples.labels measures.samples"),
    "evaluate.batch_size": (32, "samples.labels measures.batch_size"),
    "evaluate.guidance_scale": (
        1.5,
        "results.guidance_scale sampler.guidance_scale way.guidance_scale",
    ),
}
# Fields that need a run with a teacher. Its step is not traced.
TAUGHT = {
    "seed": (1, "host images loop.seed results.seed sampler.seed start"),
    "teacher": ("second", "teacher.folder"),
    "teacher_network": ("network", "teacher.network"),
    "start_from_teacher": (False, "start"),
    "pairs.count": (60, "pairs.count host images"),
    "pairs.steps": (3, "pairs.steps"),
    "data.flip": (True, ""),
    "data.label_shares": (
        "equal",
        "host images samples.labels way.label measures.labels pairs.label_counts",
    ),
    "evaluate.batch_size": (32, "samples.labels measures.batch_size pairs.batch_size"),
    "objective.guidance_scale": (
        2.0,
        "results.guidance_scale sampler.guidance_scale way.guidance_scale pairs.guidance_scale",
    ),
}
ELSEWHERE = {
    **dict.fromkeys(
        ("data.decoding", "data.background", "data.unreadable"),
        "of files of images: tests/modes/test_decoding.py, tests/data/folders/test_folder.py",
    ),
    **dict.fromkeys(
        ("codec.name", "codec.weights", "codec.scale", "codec.shift", "codec.fingerprint"),
        "of runs on latents: tests/training/test_codecs.py, tests/modes/test_latents.py",
    ),
    "compilation_cache": "of the process, not of the run: tests/modes/test_compilation_cache.py",
    "mesh.fsdp_across_slices": "there is one slice here: tests/training/test_sharding.py",
    **dict.fromkeys(
        ("debug", "debug_keeps"), "set other fields: tests/training/test_experiment.py"
    ),
    **dict.fromkeys(
        ("continued.schedule", "continued.scale"),
        "of runs that are continued with other steps: tests/training/storage/test_lengths.py",
    ),
    **dict.fromkeys(
        ("model.name", "model.width", "model.depth", "model.codec", "model.score_input"),
        "of other networks than the one here: tests/training/test_networks.py",
    ),
    **dict.fromkeys(
        ("model.multipliers", "model.attention_sides", "model.variant"),
        "of U-Nets: tests/models/test_network.py",
    ),
    **dict.fromkeys(
        ("evaluate.rows", "model.score_precision", "model.coordinate_width", "model.odd"),
        "of densities: tests/modes/test_densities.py",
    ),
    "teacher_scales": "of students of guidance: tests/training/test_teacher.py",
    "data.posterior": "of latents of other programs: tests/data/test_latent_files.py",
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
    """A function: (method, fields) -> {place: what it receives}; records each run once."""
    seen = {}

    def observe(method, fields, traced=True):
        key = repr((method, sorted(fields.items()), traced))
        if key not in seen:
            with pytest.MonkeyPatch.context() as patch:
                folder = tmp_path_factory.mktemp("runs")
                seen[key] = record_run(patch, folder, method, fields, traced)
        return seen[key]

    return observe


AROUND = ("model.", "checkpoint.", "watchdog.", "log.", "evaluate.")
# Places that depend on a field without showing its value.
DERIVED = {"samples.labels", "samples.network", "way.label", "way.network", "results.network"}
DERIVED |= {"host", "images", "measures.labels", "pairs.label_counts"}
DERIVED |= {"results.images_seen", "results.training_data", "kept.scores", "way.steps"}


def check_places(observe, method, fields, field, value, places):
    """Assert that these places and no others see the field, with its value."""
    # Tracing takes longest, so it is skipped for fields without effect on the objective or updates.
    traced = method != "dmd" and not field.startswith(AROUND)
    one, other = (observe(method, f, traced) for f in (fields, fields | {field: value}))
    differing = {place for place in one.keys() | other.keys() if one.get(place) != other.get(place)}
    assert differing == set(places.split())
    for place in differing - DERIVED:
        if "." in place:
            text, parts = "".join(other[place]), value if isinstance(value, tuple) else [value]
            assert all(str(part) in text for part in parts), place


@pytest.mark.in_turn("field", 2)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_seen_where_it_belongs_and_nowhere_else(observe, field):
    value, places, *beside = FIELDS[field]
    check_places(observe, "flow_matching", PLAIN | dict(*beside), field, value, places)


@pytest.mark.parametrize("field", TAUGHT)
def test_a_field_of_a_run_with_a_teacher_is_seen_where_it_belongs(observe, field):
    check_places(observe, "dmd", DISTILLED, field, *TAUGHT[field])


def test_the_schedule_of_the_learning_rate_has_the_length_of_the_run(observe):
    check_places(
        observe,
        "flow_matching",
        PLAIN | {"optimizer.schedule": "cosine"},
        "steps",
        20,
        "loop.steps step",
    )


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_run_that_goes_on_does_not_read_what_it_started_from(monkeypatch, tmp_path, goes_on):
    found = SimpleNamespace(has_checkpoint=lambda folder: goes_on, saved_step=lambda folder: 1)
    monkeypatch.setattr(JOB, "restore", found)
    fields = PLAIN | {"teacher": "first", "evaluate.steps": (1,)}
    seen = record_run(monkeypatch, tmp_path, "ect", fields, traced=False)
    assert ("teacher.folder" in seen) == (not goes_on)


@pytest.mark.in_turn("method", 2)
@pytest.mark.parametrize("method", ["flow_matching", "sim_flow"])
def test_a_step_is_traced_once_for_its_check_and_its_training(tmp_path, monkeypatch, method):
    traces = []

    def counted(*arguments):
        step = train_step(*arguments)
        return lambda *inputs: traces.append(inputs) or step(*inputs)

    monkeypatch.setattr(COMPILED_STEP, "train_step", counted)
    monkeypatch.setitem(SIZES, "nano", NO_BLOCKS)
    config = digits.get_config(method)
    given = {"steps": 2, "batch_size": 8, "optimizer.warmup_steps": 0, "evaluate.steps": ()}
    given["model.size"] = "nano"
    if method in TEACHERS:
        given["teacher"] = save_run(
            tmp_path / "teacher", "flow_matching", **{"data.name": "digits"}
        )
    config.update_from_flattened_dict(given)
    TRAIN.train_run(Request(config=config, workdir=tmp_path / "run", given=tuple(given)))
    assert len(traces) == 1


def test_each_axis_of_the_mesh_has_its_own_size(observe):
    seen = observe("flow_matching", PLAIN | {"mesh.data": 2, "mesh.fsdp": 4})
    for place in ("loop.mesh", "sampler.mesh", "measures.mesh"):
        assert seen[place] == {"({'data': 2, 'fsdp': 4},)"}


def test_every_field_is_in_a_table():
    fields = set(flatten_fields(as_dict(base.config())))
    assert fields == {f for f in (*FIELDS, *TAUGHT, *ELSEWHERE) if not f.startswith("objective.")}


def test_a_run_says_the_step_that_it_is_at_and_not_the_one_asked_for(tmp_path, monkeypatch, capsys):
    job = SimpleNamespace(config=small_config(), experiment=small_experiment("shortcut")[1])
    monkeypatch.setattr(TRAIN, "prepare_job", lambda path, config, window, start: job)
    monkeypatch.setattr(TRAIN, "train_in_folder", lambda path, job, preemption: 6)
    TRAIN.train_run(Request(config=small_config(steps=3), workdir=tmp_path))
    assert capsys.readouterr().out.startswith(f"{tmp_path} is at step 6; draw from it")


@pytest.mark.parametrize(
    ("final", "numbers"), [(0, [20, 20]), (30, [20, 20, 30]), (20, [20, 20]), (10, [20, 20, 10])]
)
def test_the_last_state_is_measured_once_by_each_number_of_samples(monkeypatch, final, numbers):
    seen = []

    def evaluator(*_, samples, **__):
        return lambda params, step: seen.append(samples) or []

    monkeypatch.setattr(TRAIN, "evaluator", evaluator)
    config = small_config(steps=2)
    config.evaluate.num_samples, config.evaluate.final_samples = 20, final
    experiment = SimpleNamespace(sample_with="network")
    job = job_of(config=config, experiment=experiment)
    evaluate = TRAIN.make_evaluate(None, job)
    for step in (1, 2):
        evaluate(SimpleNamespace(networks={"network": ()}, followers={}, step=step))
    assert seen == numbers


@pytest.mark.parametrize(("steps", "flag"), [((1, 4), ""), ((4, 8), " --steps=4"), ((), "")])
def test_the_next_command_draws_in_steps_that_the_run_has(steps, flag):
    objective = small_experiment("moment_matching")[1].objective
    config = small_config(**{"evaluate.steps": steps})
    job = SimpleNamespace(config=config, experiment=SimpleNamespace(objective=objective))
    told = TRAIN.next_command(Path("runs/a"), job)
    assert told == f"draw from it: --mode=sample --workdir=runs/a{flag}"
