"""--mode=sample: draw samples from a run; write PNG files or an .npz, and one picture."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fewstep.data.folders.class_names import label_texts
from fewstep.data.spaces.space import Space
from fewstep.files import check_writable, write_npz, write_png
from fewstep.modes.draws import (
    COLUMNS,
    Draw,
    check_folder,
    choose_labels,
    choose_pairs,
    sibling_path,
    start_folder,
)
from fewstep.modes.mode import (
    CHECKPOINT,
    WORKDIR,
    Flag,
    Mode,
    parse_grid,
    parse_integer,
    parse_labels,
    parse_number,
    parse_path,
    parse_ranges,
)
from fewstep.modes.recorded_run import LoadedRun, load_run
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.sampling import check_draw, checked_sampler, finished_samples, guidance_scale
from fewstep.training.classes import class_names
from fewstep.training.storage.environment import count_text
from fewstep.training.storage.workdir import recorded_identity

FOLDER, LONGEST_NAME = "samples", 200
SHOWN = COLUMNS * COLUMNS
DEFAULT_SEEDS = range(64)
NAMES = {"x", "y", "seed"}  # of the arrays in an .npz of samples


def sample(request: Request) -> None:
    """Write a sample for each pair of seed and label to --out, and a picture of the first of them.

    --out is a folder for PNG files, named by seed and label, or an .npz file. The .npz has x and
    arr_0: samples [N, ...] as their space stores them, y: int32 [N] and seed: int32 [N]. The
    default lies in the folder of the run, and its name says how the samples were made. It is an
    .npz where samples have no pictures of their own. draws.py says how seeds and labels are paired,
    and what becomes of a folder with other files.

    A sample depends only on its seed and label; without classes y is -1. A sample that is not
    finite raises an error; files written before it stay.
    """
    check_request(request)
    run = load_run(request)
    space, classes = run.experiment.space, run.experiment.num_classes
    scale = guidance_scale(run, request.guidance)
    names = class_names(require_workdir(request)) if classes else ()
    asked = choose_labels(request.labels, classes, names)
    draw = choose_pairs(request.seeds or DEFAULT_SEEDS, asked, classes, request.grid)
    made_from = settings(request, run, scale)
    out = request.out or default_out(request, space, made_from, asked)
    check_form(out, space)
    if jax.process_index() == 0:
        check_free(out, made_from)
    sampler = checked_sampler(run, request.steps, scale)
    batches = finished_samples(run, sampler, draw, run.config.evaluate.batch_size)
    if jax.process_index() > 0:
        deque(batches, maxlen=0)
        return
    write = write_arrays if out.suffix == ".npz" else write_folder
    shown, removed = write(out, space, batches, draw, made_from)
    picture = sibling_path(out, ".png")
    write_png(picture, space.show(shown, draw.columns, draw.captions(names)[: len(shown)]))
    named = f", classes {', '.join(label_texts(dict.fromkeys(asked), names))}" if asked else ""
    print(
        f"{count_text(len(draw.seeds), 'sample')} of {made_from['network']} at step {run.step}, "
        f"{request.steps} sampling step(s), guidance {scale:g}{named}: {out} and {picture}"
        + (f"; removed {count_text(removed, 'picture')} of the draw before" if removed else "")
    )


def settings(request: Request, run: LoadedRun, scale: float) -> dict[str, Any]:
    """Return what the samples of all seeds and labels have in common."""
    return {
        "run": run_id(request),
        "step": run.step,
        "network": run.experiment.sample_with,
        "sampling_steps": request.steps,
        "guidance_scale": float(scale),
        **({"solver": request.solver} if request.solver else {}),
    }


def write_arrays(
    out: Path,
    space: Space,
    batches: Iterator[np.ndarray],
    draw: Draw,
    made_from: Mapping[str, Any],
) -> tuple[np.ndarray, int]:
    """Write finished samples as one .npz. Returns the first of them, and 0."""
    samples = np.concatenate([*batches])
    write_npz(out, x=samples, arr_0=samples, y=draw.labels, seed=draw.seeds)
    return samples[: max(SHOWN, space.shown)], 0


def write_folder(
    out: Path,
    space: Space,
    batches: Iterator[np.ndarray],
    draw: Draw,
    made_from: Mapping[str, Any],
) -> tuple[np.ndarray, int]:
    """Write finished samples as PNG files in a folder, batch by batch.

    Returns the first of them, and how many pictures of an earlier draw it has removed. That remains
    until the first batch is there.
    """
    files = draw.files()
    named, shown, removed = iter(files), [], 0
    for number, samples in enumerate(batches):
        if number == 0:
            removed = start_folder(out, made_from, files)
        shown += [*samples[: max(SHOWN, space.shown) - len(shown)]]
        for sample, name in zip(samples, named, strict=False):  # as many names as samples
            write_png(out / name, space.image(sample))
    return np.stack(shown), removed


def run_id(request: Request) -> str:
    """Return the id of the run; "" for a run of a version without ids."""
    return recorded_identity(require_workdir(request)).id


def default_out(
    request: Request, space: Space, made_from: Mapping[str, Any], labels: Sequence[int]
) -> Path:
    """Return WORKDIR/samples/NAME, where NAME says how the samples are made; an .npz for points.

    For points NAME has the number of seeds, the first and the last; pictures have theirs in their
    own names. labels: those of --labels.
    """
    parts = [
        f"step_{made_from['step']:08d}",
        f"{made_from['sampling_steps']}_steps",
        f"guidance_{made_from['guidance_scale']:g}",
        made_from["network"],
        *([made_from["solver"]] if "solver" in made_from else []),
        # Numbers, since the name of a class may contain a / or be longer than a file name.
        *([f"labels_{'_'.join(map(str, labels))}"] if labels else []),
    ]
    name, seeds = "-".join(parts)[:LONGEST_NAME], request.seeds or DEFAULT_SEEDS
    if space.image is None:
        name += f"-{len(seeds)}_seeds_{seeds[0]}_to_{seeds[-1]}.npz"
    return require_workdir(request) / FOLDER / name


def check_form(out: Path, space: Space) -> None:
    """Raises ValueError if --out is a folder but samples have no pictures of their own."""
    if out.suffix != ".npz" and space.image is None:
        raise ValueError(
            f"--out={out} is a folder of pictures, and this run makes {space.name}; name a file "
            "that ends in .npz"
        )


def check_free(out: Path, made_from: Mapping[str, Any]) -> None:
    """Raises ValueError if --out would touch other files, OSError if it cannot be written to."""
    picture = sibling_path(out, ".png")
    if out.suffix == ".npz":
        check_writable(out.parent, "choose another --out")
        missing = NAMES - names_in(out) if out.exists() else ()
        if missing:
            raise ValueError(
                f"{out} is no file of samples, since it lacks {', '.join(sorted(missing))}, and "
                "would be replaced; choose another --out"
            )
        if picture.exists() and not out.exists():
            raise ValueError(
                f"{picture} would be replaced, beside which there is no {out.name}; move it, or "
                "choose another --out"
            )
    else:
        check_folder(out, made_from)


def names_in(path: Path) -> set[str]:
    """The names of the arrays in an .npz; none for a file that is no .npz."""
    try:
        with np.load(path) as arrays:
            return {*arrays.files}
    except Exception:  # another file can raise nearly anything
        return set()


def check_request(request: Request) -> None:
    """Raises ValueError for a number of steps below 1, a large seed, and an invalid --out."""
    check_draw(request.steps, request.seeds or DEFAULT_SEEDS)
    if request.out is not None and (
        request.out.suffix not in ("", ".npz") or request.out.name == ".npz"
    ):
        raise ValueError(f"--out={request.out} must be a folder, or a name that ends in .npz")


SAMPLE = Mode(
    sample,
    "Draw samples from a run.",
    {
        **WORKDIR,
        **CHECKPOINT,
        "steps": Flag(
            "Number of sampling steps; default: 1. Flow matching and the like need tens.",
            parse_integer,
        ),
        "seeds": Flag("Seeds of the noise, such as 0-63 (the default) or 5,7,9.", parse_ranges),
        "labels": Flag(
            "Classes by index or name, such as 3,1 or 0-9: the first goes with the first seed, and "
            "fewer are used in turn; default: seed k has class k modulo their number.",
            parse_labels,
        ),
        "grid": Flag(
            "Draw every seed with every label: seeds,labels has a row of the picture for each "
            "seed, labels,seeds one for each label.",
            parse_grid,
        ),
        "guidance": Flag(
            "Guidance scale; 1 is no guidance; default: that of the run.", parse_number
        ),
        "out": Flag(
            "Folder for the PNG files of one draw, or an .npz file; default: in WORKDIR/samples.",
            parse_path,
        ),
    },
    together=True,
    replaces=("codec.weights", "data.dir", "data.name"),
)
