"""--mode=sample: images from a run, as PNG files or an .npz, and a grid of them."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from data.class_names import described, label_of
from eval.generate import batch_sampler, generate
from eval.grid import save_grid, save_png
from modes.request import Request, load_run, required_workdir
from training.classes import class_names
from training.experiment import check_guidance
from training.files import write_npz

COLUMNS = 16
SHOWN = COLUMNS * COLUMNS
# The noise of seed k is that of sample k in an evaluation of a run whose own seed is this.
STREAM_SEED = 0
DEFAULT_SEEDS, LARGEST_SEED = range(64), 2**31 - 1


def sample(request: Request) -> None:
    """Write one image for each of --seeds to --out, and a grid of the first ones.

    --out is a folder of PNG files named by seed, or an .npz with x: uint8 [N, H, W, C], y: int32
    [N] and seed: int32 [N]. An image depends on its seed and label alone. Seed k has the label k
    places on in --labels, which are gone through again and again, by default in all classes; y is
    -1 for a model without classes. Files are written as images are made, and stay if a later one is
    not finite, which ends it with an error.
    """
    check(request)
    config, experiment, mesh, params, step = load_run(request)
    scale = experiment.objective.guidance_scale if request.guidance is None else request.guidance
    check_guidance(experiment, scale)
    seeds = np.array(request.seeds or DEFAULT_SEEDS, np.int32)
    names = class_names(required_workdir(request)) if experiment.num_classes else ()
    choices = chosen_labels(request, experiment.num_classes, names)
    labels = choices[seeds % len(choices)].astype(np.int32)
    sampler = batch_sampler(
        experiment.objective,
        experiment.image_shape,
        mesh,
        seed=STREAM_SEED,
        steps=request.steps,
        guidance_scale=scale,
    )
    size = config.evaluate.batch_size
    batches = generate(sampler, params, labels, size, "sampling", seeds)
    if jax.process_index() > 0:
        deque(batches, maxlen=0)
        return
    out = request.out or required_workdir(request) / f"samples_{request.steps}_steps"
    grid = write(out, batches, labels, seeds)
    shown = dict.fromkeys(choices.tolist()) if request.labels else {}
    classes = f", classes {', '.join(described(shown, names))}" if shown else ""
    print(
        f"{len(seeds)} samples of {experiment.sample_with} at step {step}, {request.steps} "
        f"sampling step(s), guidance {scale:g}{classes}: {out} and {grid}"
    )


def write(out: Path, batches: Iterator[np.ndarray], labels: np.ndarray, seeds: np.ndarray) -> Path:
    """The images as one .npz, or as PNG files in a folder, each batch once it is there.

    Returns the path of a grid of the first ones.
    """
    if out.suffix == ".npz":
        images = np.concatenate([*batches])
        write_npz(out, x=images, y=labels, seed=seeds)
        grid, shown = out.with_suffix(".png"), images[:SHOWN]
    else:
        named, shown = iter(seeds), []
        for images in batches:
            shown += [*images[: SHOWN - len(shown)]]
            for image, seed in zip(images, named, strict=False):  # as many seeds as images
                squeezed = image[..., 0] if image.shape[-1] == 1 else image
                save_png(out / f"{seed:06d}.png", Image.fromarray(squeezed))
        grid = out / "grid.png"
    save_grid(grid, np.stack(shown), columns=COLUMNS)
    return grid


def check(request: Request) -> None:
    """Raises ValueError for an option that cannot be carried out."""
    largest = max(request.seeds or DEFAULT_SEEDS)
    if largest > LARGEST_SEED:
        raise ValueError(f"--seeds has {largest}; the largest is {LARGEST_SEED}")
    if request.out is not None and (
        request.out.suffix not in ("", ".npz") or request.out.name == ".npz"
    ):
        raise ValueError(f"--out={request.out} must be a folder, or a name that ends in .npz")


def chosen_labels(request: Request, num_classes: int, names: Sequence[str] = ()) -> np.ndarray:
    """The labels asked for, by index or by name, all classes by default.

    Raises ValueError for one that is no class.
    """
    if num_classes == 0:
        if request.labels:
            raise ValueError("--labels was given, but this model was trained without classes")
        return np.array([-1])
    asked = [label_of(label, names, num_classes) for label in request.labels]
    return np.array(asked or range(num_classes))
