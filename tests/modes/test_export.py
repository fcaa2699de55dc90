"""--mode=export writes a network that comes back as it was, and refuses what a format lacks."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fewstep.files import write_npz
from fewstep.models.codecs import CODECS, NamedCodec
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.modes.checkpoints import print_checkpoints
from fewstep.modes.export import CARD, export
from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.sample import sample
from fewstep.training.codec_weights import load_codec
from fewstep.training.exports.own import PLACES, config_without_places
from fewstep.training.exports.published import import_flags
from fewstep.training.storage import workdir
from fewstep.weights.layouts.blocks import split_blocks
from fewstep.weights.layouts.names import flatten
from fewstep.weights.tensors import read_tensors
from tests.training.runs import save_run, small_config

SIT = {"model.time_scale": 1.0}
DIT = {"path.name": "vp_discrete", "prediction.kind": "eps", "objective.solver.name": "ddim"}
TINY = NamedCodec(tiny_autoencoder, {"width": 8, "blocks": (1, 1, 1, 1)}, "sd")

SD3 = {"codec.name": "sd3", "codec.scale": (1.5,), "codec.shift": (0.1,)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, by name."""
    root = tmp_path_factory.mktemp("runs")
    kinds = {
        "shortcut": ("shortcut", {}),
        "stacked": ("flow_matching", {"model.scan": True, **SIT}),
        "ddpm": ("ddpm", DIT),
        "genie": ("genie", SIT),
        "three": ("ddpm", {**DIT, "objective.guided_channels": 3}),
    }
    return {
        name: Path(save_run(root / name, method, **fields))
        for name, (method, fields) in kinds.items()
    }


def exported(run, out, form, **fields):
    """Export a run; returns the folder."""
    export(Request(workdir=run, out=out, format=form, **fields))
    return out


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize(
    ("name", "form", "network"),
    [
        ("shortcut", "safetensors", ""),
        ("shortcut", "safetensors", "network"),
        ("stacked", "npz", ""),
    ],
)
def test_an_export_comes_back_bit_for_bit(runs, tmp_path, name, form, network):
    out = exported(runs[name], tmp_path / "out", form, network=network)
    import_weights(Request(workdir=tmp_path / "back", weights=out))
    before = load_run(Request(workdir=runs[name], network=network))
    after = load_run(Request(workdir=tmp_path / "back"))
    assert_equal(after.params, before.params)
    assert after.step == before.step == 5
    own = ("ema", "data", "evaluate", "compilation_cache")
    for group in before.config:
        assert group in own or after.config[group] == before.config[group], group
    record = json.loads((out / "config.json").read_text())["record"]
    assert record["network"] == before.experiment.sample_with
    assert record["run"] == workdir.recorded_identity(runs[name]).id


def test_samples_of_what_comes_back_are_the_same_bits(runs, tmp_path):
    out = exported(runs["shortcut"], tmp_path / "out", "safetensors")
    import_weights(Request(workdir=tmp_path / "back", weights=out / "network.safetensors"))
    for run, name in ((runs["shortcut"], "a"), (tmp_path / "back", "b")):
        sample(Request(workdir=run, steps=2, seeds=(0, 1, 5), out=tmp_path / f"{name}.npz"))
    drawn = [np.load(tmp_path / f"{name}.npz")["x"] for name in "ab"]
    assert drawn[0].std() > 1.0
    np.testing.assert_array_equal(*drawn)


def test_a_run_that_is_evaluated_in_no_steps_is_exported(tmp_path):
    run = Path(save_run(tmp_path / "run", "flow_matching", **{"evaluate.steps": ()}))
    assert (exported(run, tmp_path / "out", "safetensors") / "network.safetensors").exists()


def test_the_data_that_are_named_give_an_import_their_classes(runs, tmp_path):
    out = exported(runs["shortcut"], tmp_path / "out", "safetensors")
    name = load_run(Request(workdir=runs["shortcut"])).config.data.name
    for folder, fields in (("plain", {}), ("named", {"data.name": name})):
        import_weights(Request(workdir=tmp_path / folder, weights=out, fields=fields))
        data = workdir.recorded_identity(tmp_path / folder).data
        assert (data is not None) == bool(fields)


def test_fields_that_make_it_another_network_are_refused_and_nothing_is_written(runs, tmp_path):
    out = exported(runs["shortcut"], tmp_path / "out", "safetensors")
    fields = {"codec.name": "f4"}
    with pytest.raises(ValueError, match="is not that of the given fields: with these images"):
        import_weights(Request(workdir=tmp_path / "back", weights=out, fields=fields))
    assert not (tmp_path / "back").exists()


def test_a_generator_comes_back_without_its_fake_score_and_is_whole(tmp_path, capsys):
    run = Path(save_run(tmp_path / "run", "sim"))
    out = exported(run, tmp_path / "out", "safetensors")
    import_weights(Request(workdir=tmp_path / "back", weights=out))
    capsys.readouterr()
    print_checkpoints(Request(workdir=tmp_path / "back"))
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert row.split()[0] == "5" and row.endswith("whole")


@pytest.mark.some_days(2)
def test_a_run_on_latents_takes_its_codec_along(tmp_path, monkeypatch):
    monkeypatch.setitem(CODECS, "taesd", TINY)
    params = jax.device_get(TINY.build((64, 64, 3), **TINY.fields).init(jax.random.key(0)))
    write_npz(tmp_path / "codec.npz", **flatten(params))
    fields = {"codec.name": "taesd", "codec.weights": str(tmp_path / "codec.npz")}
    sizes = {"data.image_size": 64, "data.channels": 3}
    run = Path(save_run(tmp_path / "run", "flow_matching", **fields, **sizes))
    out = exported(run, tmp_path / "out", "safetensors")
    (tmp_path / "codec.npz").unlink()
    import_weights(Request(workdir=tmp_path / "back", weights=out))
    back = load_run(Request(workdir=tmp_path / "back")).config
    assert back.codec.weights == str(out / "codec.safetensors")
    assert_equal(load_codec(back).params, params)


@pytest.mark.parametrize(
    ("name", "layout"), [("stacked", "sit"), ("stacked", "repa"), ("ddpm", "dit")]
)
def test_published_names_come_back(runs, tmp_path, name, layout):
    out = exported(runs[name], tmp_path / "out", layout)
    file = out / f"{layout}.safetensors"
    import_weights(Request(workdir=tmp_path / "back", weights=file, layout=layout))
    before, after = (load_run(Request(workdir=run)) for run in (runs[name], tmp_path / "back"))
    assert after.config.method == before.config.method
    tolerance = 1e-6 if layout == "sit" else 0.0  # the rows of its time are turned twice
    jax.tree.map(
        lambda own, back: np.testing.assert_allclose(
            back, own, atol=tolerance * np.abs(own).max(), rtol=0
        ),
        split_blocks(before.params),
        after.params,
    )
    card = (out / CARD).read_text()
    assert "## Not in these files" in card and "--config.data.image_size=8" in card


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"data.channels": 3}, {}),
        ({"data.channels": 4}, {"codec.name": ""}),
        ({"data.channels": 3, **SD3}, SD3),
    ],
)
def test_the_command_of_a_card_says_what_a_published_file_does_not(fields, flags):
    config = small_config(**fields, **{"data.image_size": 32})
    named = {f"config.{field}": value for field, value in flags.items()}
    assert import_flags(config) == {"config.data.image_size": 32, **named}


def test_a_folder_of_diffusers_has_its_parts_and_comes_back(runs, tmp_path):
    out = exported(runs["ddpm"], tmp_path / "out", "diffusers")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    transformer = "transformer/diffusion_pytorch_model.safetensors"
    assert files == {
        CARD,
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        transformer,
    }
    assert "downscale_freq_shift = 0" in (out / CARD).read_text()
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "DDIMScheduler"
    import_weights(
        Request(workdir=tmp_path / "back", weights=out / transformer, fields={"data.image_size": 8})
    )
    before, after = (load_run(Request(workdir=run)) for run in (runs["ddpm"], tmp_path / "back"))
    assert_equal(after.params, before.params)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        (
            "shortcut",
            "diffusers",
            r"model\.second_time=step_size \(it has none\), objective\.name=",
        ),
        ("ddpm", "sit", r"cannot express model\.time_scale=1000\.0 \(it has 1\.0\), path\.name=vp"),
        ("shortcut", "dit", r"time=step_size \(it has none\), path\.name=linear \(it has vp_dis"),
        ("three", "diffusers", r"cannot express objective\.guided_channels=3"),
        ("genie", "sit", "cannot express the head that genie trains; export its teacher"),
        ("shortcut", "unet", "--format='unet' is not one of safetensors, npz, diffusers, onnx"),
        ("shortcut", "onnx", "needs jax2onnx; install it by: pip install -r requirements-export"),
    ],
)
def test_what_a_format_lacks_is_named_and_nothing_is_written(
    runs, tmp_path, monkeypatch, name, form, message
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        exported(runs[name], tmp_path / "out", form)
    assert not [*tmp_path.iterdir()]


def test_an_export_comes_back_at_its_own_size_alone(runs, tmp_path):
    """A DiT has the same parameters at each size, but other positions."""
    out = exported(runs["shortcut"], tmp_path / "out", "safetensors")
    with pytest.raises(ValueError, match=r"data\.image_size=16, but the network in .* has 8"):
        import_weights(
            Request(workdir=tmp_path / "back", weights=out, fields={"data.image_size": 16})
        )


def test_steps_that_a_run_does_not_sample_in_are_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="--steps=3: "):
        exported(runs["shortcut"], tmp_path / "out", "onnx", fields={"evaluate.steps": (3,)})
    with pytest.raises(ValueError, match="--runtime is not used by --format=onnx, only by web"):
        exported(runs["shortcut"], tmp_path / "out", "onnx", runtime=tmp_path)


def test_an_export_is_there_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:

        def stop(*_, **__):
            raise KeyboardInterrupt

        patch.setattr("fewstep.modes.export.replace_file", stop)
        with pytest.raises(KeyboardInterrupt):
            exported(runs["shortcut"], out, "safetensors")
    assert not [*tmp_path.iterdir()]
    exported(runs["shortcut"], out, "safetensors")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="is there already; choose another --out"):
        exported(runs["shortcut"], out, "npz")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def change_weights(out):
    tensors = dict(np.load(out / "network.npz"))
    tensors["final/output/bias"] = tensors["final/output/bias"] + np.float32(1e-3)
    np.savez(out / "network.npz", **tensors)


def change_record(out):
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"steps": 10', '"steps": 11'))


@pytest.mark.parametrize(
    ("change", "message"),
    [(change_weights, "is not what was exported with config.json"), (change_record, "is not what")],
)
def test_a_changed_export_is_refused(runs, tmp_path, change, message):
    out = exported(runs["shortcut"], tmp_path / "out", "npz")
    change(out)
    with pytest.raises(ValueError, match=message):
        import_weights(Request(workdir=tmp_path / "back", weights=out))
    assert not (tmp_path / "back").exists()


def test_no_place_on_this_machine_is_exported():
    given = dict.fromkeys(PLACES, "/secret/x") | {"evaluate.reference": "/secret/x.npz"}
    given |= {"objective.regression_distance.weights": "/secret/vgg.pth,/secret/heads.pth"}
    config = small_config("dmd", **given, **{"data.name": "folder:/secret/x"})
    kept = config_without_places(config)
    assert "secret" in str(config) and "secret" not in str(kept)
    assert (kept.data.name, kept.evaluate.reference) == ("none", "train")


def test_names_are_paths(runs, tmp_path):
    out = exported(runs["stacked"], tmp_path / "out", "safetensors")
    tensors = read_tensors(out / "network.safetensors")
    expected = split_blocks(load_run(Request(workdir=runs["stacked"])).params)
    assert_equal(tensors, flatten(expected))
    assert "block_0/attention/qkv/kernel" in tensors
