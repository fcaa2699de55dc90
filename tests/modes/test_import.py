"""--mode=import makes a run that samples and teaches, and refuses what is no published network."""

import jax
import numpy as np
import pytest

from fewstep.configs import digits as CONFIGS
from fewstep.files import write_npz
from fewstep.models.codecs import CODECS, NamedCodec
from fewstep.models.time_reversal import reverse_time
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.modes.describe import describe_record
from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.sample import sample
from fewstep.modes.train_run import train_run
from fewstep.training.compiled_step import abstract_state
from fewstep.training.experiment import build
from fewstep.training.sharding import make_mesh
from fewstep.training.start import find_origin, load_start
from fewstep.training.state import MOMENTS, NETWORKS, START
from fewstep.training.storage import restore, workdir
from fewstep.weights.layouts.blocks import stack_blocks
from fewstep.weights.layouts.diffusers_dit import write_diffusers
from fewstep.weights.layouts.names import flatten
from fewstep.weights.tensors import file_sha256
from tests.published import meta_tensors, small_dit, write_safetensors

DIGITS = {"channels": 1, "classes": 10}
_, PARAMS, SIZES = small_dit(**DIGITS)


@pytest.fixture
def published(tmp_path):
    """A function that writes a file of Meta's layout and returns its path."""

    def write(name="network.safetensors", variance=True, change=lambda tensors: None, **fields):
        _, params, sizes = small_dit(**(DIGITS | fields))
        tensors = meta_tensors(params, sizes, variance)
        change(tensors)
        return write_safetensors(tmp_path / name, tensors)

    return write


def imported(path, folder, layout="sit", **fields):
    """Import a file; returns the loaded run. fields: dotted names with __ for the dots."""
    given = {name.replace("__", "."): value for name, value in fields.items()}
    import_weights(Request(workdir=folder, weights=path, layout=layout, fields=given))
    return load_run(Request(workdir=folder))


def assert_equal(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_sit_becomes_a_run_of_flow_matching(published, tmp_path, capsys):
    path = published()
    run = imported(path, tmp_path / "run")
    assert run.config.method == "flow_matching" and run.step == 0
    model = run.experiment.model
    assert (model.path.name, model.kind.name) == ("linear", "velocity")
    assert run.config.model.time_scale == 1.0
    # SiT counts from noise to data and predicts x_0 - eps (tests/models/test_time_reversal.py).
    assert_equal(run.params, reverse_time(PARAMS, time_scale=1.0))
    record = {"layout": "sit", "part": "", "files": {path.name: file_sha256(path)}}
    assert workdir.recorded_identity(tmp_path / "run").imported == record
    assert describe_record(tmp_path / "run") == [
        f"imported     sit from {path.name} ({file_sha256(path)})"
    ]
    said = capsys.readouterr().out
    assert "a SiT: dit nano/2" in said and "8 x 8 x 1, 10 classes" in said


def test_a_dit_predicts_noise_at_the_steps_of_ddpm(published, tmp_path):
    run = imported(published(), tmp_path / "run", "dit")
    model = run.experiment.model
    assert (run.config.method, model.path.name, model.kind.name) == ("ddpm", "vp_discrete", "eps")
    assert run.config.objective.solver.name == "ddim"
    assert run.config.model.time_scale == 1000.0
    assert_equal(run.params, PARAMS)


def test_a_dit_of_diffusers_needs_the_size_of_its_input(tmp_path):
    path = write_safetensors(tmp_path / "file.safetensors", write_diffusers(PARAMS, SIZES))
    with pytest.raises(
        ValueError, match=r"size of its images: set it by --config\.data\.image_size"
    ):
        imported(path, tmp_path / "run", "")
    run = imported(path, tmp_path / "run", "", data__image_size=8)
    assert_equal(run.params, PARAMS)


def test_blocks_are_stacked_for_a_loop(published, tmp_path):
    run = imported(published(), tmp_path / "run", "dit", model__scan=True)
    assert_equal(run.params, stack_blocks(PARAMS))


def test_it_samples(published, tmp_path):
    run = tmp_path / "run"
    imported(published(), run, data__name="digits")
    sample(Request(workdir=run, steps=4, seeds=(0, 1), out=tmp_path / "x.npz"))
    drawn = np.load(tmp_path / "x.npz")["x"]
    assert drawn.shape == (2, 8, 8, 1) and drawn.dtype == np.uint8 and drawn.std() > 1.0


@pytest.mark.some_days(3)
def test_it_teaches(published, tmp_path):
    imported(published(), tmp_path / "teacher", data__name="digits")
    config = CONFIGS.get_config("cd_flow")
    config.update_from_flattened_dict(
        {
            "teacher": str(tmp_path / "teacher"),
            "steps": 2,
            "batch_size": 8,
            "optimizer.warmup_steps": 0,
            "evaluate.steps": (),
        }
    )
    given = ("teacher", "steps")
    train_run(Request(config=config, workdir=tmp_path / "student", given=given))
    student = workdir.recorded_identity(tmp_path / "student")
    assert restore.saved_step(tmp_path / "student") == 2
    teacher = restore.read_record(tmp_path / "teacher", 0)["fingerprints"]
    assert student.teacher["fingerprint"] == teacher["network"]
    assert student.fields["model.size"] == "nano" and student.fields["model.time_scale"] == 1.0


@pytest.mark.some_days(2)
def test_a_network_on_latents_samples_through_its_codec(published, tmp_path, monkeypatch, capsys):
    tiny = NamedCodec(tiny_autoencoder, {"width": 8, "blocks": (1, 1, 1, 1)}, "sd")
    monkeypatch.setitem(CODECS, "sd", tiny)
    run, file = tmp_path / "run", tmp_path / "codec.npz"
    import_weights(Request(workdir=run, weights=published(channels=4), layout="dit"))
    assert "latents of 8 x 8 x 4, 10 classes; draw from it" in capsys.readouterr().out
    config = workdir.load_config(run)
    assert (config.data.image_size, config.data.channels) == (64, 3)
    assert (config.codec.name, config.codec.scale) == ("sd", [0.18215])
    asked = Request(workdir=run, steps=2, seeds=(0, 1), out=tmp_path / "x.npz")
    with pytest.raises(ValueError, match="codec.weights is required for codec.name=sd"):
        sample(asked)
    params = tiny.build((64, 64, 3), **tiny.fields).init(jax.random.key(0))
    write_npz(file, **flatten(jax.device_get(params)))
    sample(asked._replace(fields={"codec.weights": str(file)}))
    drawn = np.load(tmp_path / "x.npz")["x"]
    assert drawn.shape == (2, 64, 64, 3) and drawn.dtype == np.uint8 and drawn.std() > 1.0
    given = {"codec.weights": str(file)}
    import_weights(
        Request(workdir=tmp_path / "b", weights=published(channels=4), layout="dit", fields=given)
    )
    assert workdir.load_config(tmp_path / "b").codec.fingerprint != ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codec.name": "sd3"}, "has 4 channels, and latents of codec.name=sd3 have 16"),
        ({"codec.name": "sd", "data.image_size": 8}, "is for images of 64 x 64"),
    ],
)
def test_a_codec_that_does_not_fit_the_network_is_refused(published, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        import_weights(
            Request(
                workdir=tmp_path / "run",
                weights=published(channels=4),
                layout="dit",
                fields=fields,
            )
        )


def test_another_run_starts_from_it(published, tmp_path):
    imported(published(), tmp_path / "run", "dit", data__name="digits")
    config = CONFIGS.get_config("ddpm")
    fields = {"model.size": "nano", "path.name": "vp_discrete", "prediction.kind": "eps"}
    sizes = {"data.image_size": 8, "data.channels": 1, "data.num_classes": 10}
    config.update_from_flattened_dict(fields | sizes)
    experiment, mesh = build(config), make_mesh()
    state = abstract_state(experiment.objective, experiment.optimizers, 0, {}, mesh)
    origin = find_origin(str(tmp_path / "run"), config, experiment, mesh)
    start = load_start(origin, state)[START]
    given = start[NETWORKS]["network"]["block_1/mlp/expand/kernel"]
    np.testing.assert_array_equal(given, PARAMS["block_1"]["mlp"]["expand"]["kernel"])
    assert start[MOMENTS]["network"]  # of an optimizer that has made no update


def test_a_file_whose_names_say_too_little_asks_for_its_layout(published, tmp_path):
    with pytest.raises(ValueError, match="can be a DiT or a SiT: .* --layout=dit or --layout=sit"):
        imported(published(), tmp_path / "run", "")

    def add_projector(tensors):
        tensors["projectors.0.0.weight"] = np.zeros((2, 2), np.float32)

    run = imported(published(change=add_projector, variance=False), tmp_path / "run", "")
    assert workdir.recorded_identity(tmp_path / "run").imported["layout"] == "repa"
    assert_equal(run.params, PARAMS)


def shift_positions(tensors):
    tensors["pos_embed"] = tensors["pos_embed"] + np.float32(1e-3)


def cut_block(tensors):
    for name in [name for name in tensors if name.startswith("blocks.2.")]:
        del tensors[name]


def break_bias(tensors):
    tensors["blocks.1.attn.qkv.bias"][5] = np.nan


def rename(tensors):
    tensors["blocks.1.attn.qkv_bias"] = tensors.pop("blocks.1.attn.qkv.bias")


def make_unknown(tensors):
    tensors.clear()
    tensors["conv_in.weight"] = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (shift_positions, {}, "pos_embed differs by 0.001 from the fixed sines"),
        (cut_block, {}, "2 blocks of width 64, which is no published size"),
        (break_bias, {}, r"blocks\.1\.attn\.qkv\.bias has values that are not finite"),
        (rename, {}, r"1 missing, such as blocks\.1\.attn\.qkv\.bias; 1 unknown, such as "),
        (
            make_unknown,
            {"layout": ""},
            r"layout that is not known: its tensors are conv_in\.weight",
        ),
        (None, {"layout": "unet"}, "--layout='unet'"),
        (None, {"data__num_classes": 9}, r"data\.num_classes=9, but the network in .* has 10"),
        (None, {"data__channels": 3}, r"data\.channels=3, but the network in .* has 1"),
        (None, {"data__image_size": 16}, "is for images of 8 x 8"),
        (None, {"data__image_size": "8"}, "data.image_size='8' must be a whole number"),
        (None, {"data__name": "digits", "data__flip": 3}, "data.flip=3 must be True or False"),
    ],
)
def test_a_bad_file_or_flag_is_refused_and_nothing_is_written(
    change, fields, message, published, tmp_path
):
    path = published(change=change or (lambda tensors: None))
    with pytest.raises(ValueError, match=message):
        imported(path, tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_data_of_other_classes_are_refused(published, tmp_path):
    message = "label table in .* has 5 classes and the null class, and digits has 10; name the data"
    with pytest.raises(ValueError, match=message):
        imported(published(classes=5), tmp_path / "run", data__name="digits")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused(published, tmp_path):
    path = published()
    imported(path, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already; choose another --workdir"):
        imported(path, tmp_path / "run")


def test_an_import_that_was_interrupted_is_repeated(published, tmp_path, monkeypatch):
    path, folder = published(), tmp_path / "run"
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr("fewstep.modes.import_weights.save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            imported(path, folder)
    assert not restore.has_checkpoint(folder)
    before = workdir.recorded_identity(folder).id
    assert imported(path, folder).step == 0
    assert workdir.recorded_identity(folder).id == before


@pytest.mark.parametrize("weights", [None, "absent.pt", "."])
def test_a_missing_file_is_named(weights, tmp_path):
    given = None if weights is None else tmp_path / weights
    with pytest.raises(ValueError, match="--weights"):
        import_weights(Request(workdir=tmp_path / "run", weights=given))
