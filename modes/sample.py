"""--mode=sample: draw samples from a run; write PNG files or an .npz, and one picture."""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fewstep.data.folders.class_names import label_of, label_texts
from fewstep.data.spaces.space import Space
from fewstep.files import check_writable, write_json, write_npz, write_png
from fewstep.modes.mode import (
    CHECKPOINT,
    WORKDIR,
    Flag,
    Mode,
    parse_integer,
    parse_labels,
    parse_number,
    parse_path,
    parse_ranges,
)
from fewstep.modes.request import Request, load_run, require_workdir
from fewstep.objectives.stages import check_sampling_steps
from fewstep.training.classes import class_names
from fewstep.training.experiment import check_guidance
from fewstep.training.generate import batch_sampler, generate
from fewstep.training.storage.identity import differing_fields
from fewstep.training.storage.workdir import recorded_identity

FOLDER, LONGEST_NAME = "samples", 200
COLUMNS = 16
SHOWN = COLUMNS * COLUMNS
# Seed k has the noise of sample k in an evaluation of a run with this seed.
STREAM_SEED = 0
DEFAULT_SEEDS, LARGEST_SEED = range(64), 2**31 - 1


def sample(request: Request) -> None:
    """Write one sample for each of --seeds to --out, and a picture of the first samples beside it.

    --out is a folder for PNG files, named by seed, or an .npz file. The .npz has x and arr_0:
    samples [N, ...] as their space stores them, y: int32 [N] and seed: int32 [N]. The default lies
    in the folder of the run, and its name says how the samples were made. It is an .npz where
    samples have no pictures of their own. A folder with other images raises ValueError.

    A sample depends only on its seed and label. --labels, by default all classes, are used in turn:
    seed k has label k modulo their number. Without classes y is -1. A sample that is not finite
    raises an error; files written before it stay.
    """
    check_request(request)
    config, experiment, mesh, params, step = load_run(request)
    scale = experiment.objective.guidance_scale if request.guidance is None else request.guidance
    check_guidance(experiment, scale)
    check_sampling_steps(experiment.objective.stages, step, (request.steps,))
    seeds = np.array(request.seeds or DEFAULT_SEEDS, np.int32)
    names = class_names(require_workdir(request)) if experiment.num_classes else ()
    choices = choose_labels(request, experiment.num_classes, names)
    labels = choices[seeds % len(choices)].astype(np.int32)
    made_from = {
        "run": run_id(request),
        "step": step,
        "network": experiment.sample_with,
        "sampling_steps": request.steps,
        "guidance_scale": float(scale),
        "labels": choices.tolist(),
    }
    space = experiment.space
    out = request.out or default_out(request, space, made_from)
    check_form(out, space)
    if jax.process_index() == 0:
        check_free(out, made_from)
    sampler = batch_sampler(
        experiment.objective,
        space.shape,
        mesh,
        seed=STREAM_SEED,
        steps=request.steps,
        guidance_scale=scale,
    )
    size = config.evaluate.batch_size
    batches = map(space.finish, generate(sampler, params, labels, size, "sampling", seeds))
    if jax.process_index() > 0:
        deque(batches, maxlen=0)
        return
    if out.suffix != ".npz":
        write_json(record_path(out), made_from)
    picture = write_samples(out, space, batches, labels, seeds)
    shown = dict.fromkeys(choices.tolist()) if request.labels else {}
    classes = f", classes {', '.join(label_texts(shown, names))}" if shown else ""
    print(
        f"{len(seeds)} samples of {experiment.sample_with} at step {step}, {request.steps} "
        f"sampling step(s), guidance {scale:g}{classes}: {out} and {picture}"
    )


def write_samples(
    out: Path,
    space: Space,
    batches: Iterator[np.ndarray],
    labels: np.ndarray,
    seeds: np.ndarray,
) -> Path:
    """Write finished samples as one .npz, or as PNG files in a folder batch by batch.

    Returns the path of a picture of the first samples.
    """
    most = max(SHOWN, space.shown)
    if out.suffix == ".npz":
        samples = np.concatenate([*batches])
        write_npz(out, x=samples, arr_0=samples, y=labels, seed=seeds)
        shown = samples[:most]
    else:
        named, shown = iter(seeds), []
        for samples in batches:
            shown += [*samples[: most - len(shown)]]
            for sample, seed in zip(samples, named, strict=False):  # as many seeds as samples
                write_png(out / f"{seed:06d}.png", space.image(sample))
    picture = sibling_path(out, ".png")
    write_png(picture, space.show(np.stack(shown), COLUMNS))
    return picture


def run_id(request: Request) -> str:
    """Return the id of the run; "" for a run of a version without ids."""
    return recorded_identity(require_workdir(request)).id


def default_out(request: Request, space: Space, made_from: Mapping[str, Any]) -> Path:
    """Return WORKDIR/samples/NAME, where NAME says how the samples are made; an .npz for points.

    NAME has no seeds, since the names of the files in the folder have them.
    """
    parts = [
        f"step_{made_from['step']:08d}",
        f"{made_from['sampling_steps']}_steps",
        f"guidance_{made_from['guidance_scale']:g}",
        made_from["network"],
        # Numbers, since the name of a class may contain a / or be longer than a file name.
        *([f"labels_{'_'.join(map(str, made_from['labels']))}"] if request.labels else []),
    ]
    name = "-".join(parts)[:LONGEST_NAME] + ("" if space.image else ".npz")
    return require_workdir(request) / FOLDER / name


def check_form(out: Path, space: Space) -> None:
    """Raises ValueError if --out is a folder but samples have no pictures of their own."""
    if out.suffix != ".npz" and space.image is None:
        raise ValueError(
            f"--out={out} is a folder of pictures, and this run makes {space.name}; name a file "
            "that ends in .npz"
        )


def sibling_path(out: Path, suffix: str) -> Path:
    """Return the path beside a folder of samples or an .npz, with its name and another suffix."""
    out = out.resolve()
    return out.with_suffix(suffix) if out.suffix == ".npz" else out.with_name(out.name + suffix)


def record_path(out: Path) -> Path:
    """Return the file that records how the samples in a folder were made."""
    return sibling_path(out, ".json")


def check_free(out: Path, made_from: Mapping[str, Any]) -> None:
    """Raises ValueError for a folder with other images, OSError if it cannot be written to."""
    check_writable(out.parent if out.suffix == ".npz" else out, "choose another --out")
    if out.suffix == ".npz" or not (out.is_dir() and any(map(is_png, out.iterdir()))):
        return
    try:
        before = json.loads(record_path(out).read_bytes())
        found = differing_fields(before, made_from)
    except (OSError, ValueError, AttributeError, RecursionError):
        found = ["no record says how they were made"]
    if found:
        raise ValueError(
            f"{out} has other images already: {'; '.join(found)}; choose another --out or delete "
            "the folder"
        )


def is_png(path: Path) -> bool:
    """Whether the name of a file is that of a PNG."""
    return path.suffix.lower() == ".png"


def check_request(request: Request) -> None:
    """Raises ValueError for seeds that are too large and for an invalid --out."""
    largest = max(request.seeds or DEFAULT_SEEDS)
    if largest > LARGEST_SEED:
        raise ValueError(f"--seeds={largest} is too large; the largest is {LARGEST_SEED}")
    if request.out is not None and (
        request.out.suffix not in ("", ".npz") or request.out.name == ".npz"
    ):
        raise ValueError(f"--out={request.out} must be a folder, or a name that ends in .npz")


def choose_labels(request: Request, num_classes: int, names: Sequence[str] = ()) -> np.ndarray:
    """Return the labels of --labels, given by index or name; by default all classes.

    Raises ValueError for a label that is not a class.
    """
    if num_classes == 0:
        if request.labels:
            raise ValueError("--labels has no effect: the run has no classes; remove it")
        return np.array([-1])
    asked = [label_of(label, names, num_classes) for label in request.labels]
    return np.array(asked or range(num_classes))


SAMPLE = Mode(
    sample,
    "Draw samples from a run.",
    {
        **WORKDIR,
        **CHECKPOINT,
        "steps": Flag("Number of sampling steps; default: 1.", parse_integer),
        "seeds": Flag("Seeds of the noise, one image each; default: 0-63.", parse_ranges),
        "labels": Flag(
            "Classes by index or name, used in turn, such as 3,1; default: all.", parse_labels
        ),
        "guidance": Flag(
            "Guidance scale; 1 is no guidance; default: that of the run.", parse_number
        ),
        "out": Flag(
            "Folder for PNG files, or an .npz file; default: in WORKDIR/samples.", parse_path
        ),
    },
    together=True,
)
