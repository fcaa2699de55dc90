"""--mode=export: write the network of a run as files that other programs read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from fewstep.eval.report.card import model_card
from fewstep.files import check_writable, replace_file, whole_folder
from fewstep.messages import unknown_choice
from fewstep.modes.mode import (
    CHECKPOINT,
    WORKDIR,
    Flag,
    Mode,
    parse_integers,
    parse_number,
    parse_path,
    parse_text,
)
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request, require_workdir
from fewstep.training.classes import class_names
from fewstep.training.cluster.processes import say
from fewstep.training.codec_weights import load_codec
from fewstep.training.experiment import check_guidance
from fewstep.training.exports.diffusers import diffusers_contents
from fewstep.training.exports.exported import Contents, Exported
from fewstep.training.exports.onnx import onnx_contents
from fewstep.training.exports.own import own_contents
from fewstep.training.exports.published import LAYOUTS, published_contents
from fewstep.training.exports.web import web_contents
from fewstep.training.storage.workdir import recorded_identity
from fewstep.weights.layouts.blocks import split_blocks

CARD = "README.md"

# The fields that the flags of some formats set.
STEPS, GUIDANCE = "evaluate.steps", "evaluate.guidance_scale"


class Format(NamedTuple):
    """What a network becomes. fields: STEPS and GUIDANCE, where it reads them. runtime: whether it
    takes --runtime along."""

    contents: Callable[[Exported], Contents]
    fields: tuple[str, ...] = ()
    runtime: bool = False


FORMATS = {
    "safetensors": Format(partial(own_contents, network="network.safetensors")),
    "npz": Format(partial(own_contents, network="network.npz")),
    "diffusers": Format(diffusers_contents, (GUIDANCE,)),
    "onnx": Format(onnx_contents, (STEPS, GUIDANCE)),
    "web": Format(web_contents, (STEPS, GUIDANCE), runtime=True),
    **{layout: Format(partial(published_contents, layout=layout)) for layout in LAYOUTS},
}


def export(request: Request) -> None:
    """Write the network that samples, or --network, to the new folder --out, with a card.

    Raises ValueError for an unknown format, one that cannot express the run, and a folder that
    exists. The folder is there whole or not at all.
    """
    out = require_out(request)
    form = find_format(request)
    check_writable(out.parent, "choose another --out")
    exported = exported_network(request)
    contents = form.contents(exported)
    card = model_card(exported, contents, require_workdir(request))
    with whole_folder(out) as folder:
        for name, write in contents.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
        replace_file(folder / CARD, card.encode())
    say(
        f"{out} has {exported.experiment.sample_with} at step {exported.step} as {request.format}: "
        f"{', '.join([*contents.files, CARD])}"
    )


def find_format(request: Request) -> Format:
    """Return what --format names. Raises ValueError, also for a flag that it does not read."""
    if request.format not in FORMATS:
        raise ValueError(unknown_choice("--format", request.format, [*FORMATS]))
    form = FORMATS[request.format]
    given = {
        "steps": (STEPS in request.fields, lambda each: STEPS in each.fields),
        "guidance": (GUIDANCE in request.fields, lambda each: GUIDANCE in each.fields),
        "runtime": (request.runtime is not None, lambda each: each.runtime),
    }
    for flag, (is_given, reads) in given.items():
        if is_given and not reads(form):
            users = ", ".join(name for name, each in FORMATS.items() if reads(each))
            raise ValueError(
                f"--{flag} is not used by --format={request.format}, only by {users}; leave it out"
            )
    return form


def require_out(request: Request) -> Path:
    """Return --out. Raises ValueError if it is missing, or there already."""
    if request.out is None:
        raise ValueError("--out is missing; name a new folder, as in --out=exported")
    if request.out.exists() or request.out.is_symlink():
        raise ValueError(f"--out={request.out} is there already; choose another --out")
    return request.out


def exported_network(request: Request) -> Exported:
    """Return the network of the run, on the host. Raises ValueError as `load_run` does."""
    run = load_run(request)
    scale = request.fields.get(GUIDANCE, run.experiment.objective.guidance_scale)
    check_guidance(run.experiment, scale)
    return Exported(
        config=run.config,
        experiment=run.experiment,
        params=split_blocks(jax.device_get(run.params)),
        step=run.step,
        identity=recorded_identity(require_workdir(request), request.checkpoint),
        codec=load_codec(run.config) if run.config.codec.name else None,
        class_names=class_names(require_workdir(request)) if run.experiment.num_classes else (),
        sampling_steps=tuple(request.fields.get(STEPS, ())),
        guidance_scale=scale,
        guidance_asked=GUIDANCE in request.fields,
        runtime=request.runtime,
    )


EXPORT = Mode(
    export,
    "Write the network of a run as files for other programs.",
    {
        **WORKDIR,
        **CHECKPOINT,
        "format": Flag(f"What to write: {', '.join(FORMATS)}.", parse_text),
        "out": Flag("New folder for the files and their card.", parse_path),
        "steps": Flag(
            "Sampling steps of an ONNX graph; default: the fewest that the run is evaluated in. "
            "Those that a web page offers; default: 1,2,4.",
            parse_integers,
            (STEPS,),
        ),
        "guidance": Flag(
            "Guidance scale of an ONNX graph and of the code for diffusers; default: the run's. "
            "The only one of a web page; default: all that the method takes of a few.",
            parse_number,
            (GUIDANCE,),
        ),
        "runtime": Flag(
            "Folder in which `npm install onnxruntime-web` was typed, for a web page.", parse_path
        ),
    },
    replaces=("codec.weights", "data.dir", "data.name"),
)
