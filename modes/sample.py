"""--mode=sample: images from a run, as an .npz and a grid beside it."""

import jax
import numpy as np

from eval.generate import batch_sampler, cycle_labels, generate
from eval.grid import save_grid
from modes.request import Request, load_run, required_workdir
from training.experiment import check_guidance
from training.files import write_npz

COLUMNS = 16


def sample(request: Request) -> None:
    """Write x: uint8 [N, H, W, C] and y: int32 [N] to --out, and a grid of the first ones.

    Sample i depends on the seed, i and its label alone. Labels go through --labels in turn, by
    default through all classes; y is -1 for a model without classes.
    """
    check(request)
    config, experiment, mesh, params, step = load_run(request)
    scale = experiment.objective.guidance_scale if request.guidance is None else request.guidance
    check_guidance(experiment, scale)
    labels = cycle_labels(chosen_labels(request, experiment.num_classes), request.num)
    sampler = batch_sampler(
        experiment.objective,
        experiment.image_shape,
        mesh,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=scale,
    )
    images = generate(
        sampler, params, labels, batch_size=config.evaluate.batch_size, description="sampling"
    )
    name = f"samples_{request.steps}_steps_seed_{request.seed}.npz"
    out = request.out or required_workdir(request) / name
    if jax.process_index() > 0:
        return
    write_npz(out, x=images, y=labels)
    grid = out.with_suffix(".png")
    save_grid(grid, images[: COLUMNS * COLUMNS], columns=COLUMNS)
    print(
        f"{request.num} samples of {experiment.sample_with} at step {step}, {request.steps} "
        f"sampling step(s), guidance {scale:g}: {out} and {grid}"
    )


def check(request: Request) -> None:
    """Raises ValueError for an option that cannot be carried out."""
    if request.num < 1:
        raise ValueError(f"--num={request.num} must be 1 or more")
    if not 0 <= request.seed < 2**32:
        raise ValueError(f"--seed={request.seed} must be in [0, 2^32)")
    if request.out is not None and request.out.suffix != ".npz":
        raise ValueError(f"--out={request.out} must end in .npz")


def chosen_labels(request: Request, num_classes: int) -> np.ndarray:
    """The labels asked for, all classes by default. Raises ValueError for a label out of range."""
    if num_classes == 0:
        if request.labels:
            raise ValueError("--labels was given, but this model was trained without classes")
        return np.array([-1])
    for label in request.labels:
        if not 0 <= label < num_classes:
            raise ValueError(
                f"--labels={label} is out of range; this model has 0 to {num_classes - 1}"
            )
    return np.array(request.labels or range(num_classes))
