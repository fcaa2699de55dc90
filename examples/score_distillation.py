"""Images as parameters: score distillation seeks modes, variational score distillation samples.

    python main.py --config=configs/digits.py:flow_matching --workdir=runs/flow_matching
    python -m examples.score_distillation --teacher=runs/flow_matching --out=runs/distilled.png

Images that start as noise are optimized against one frozen teacher by

    SDS   the teacher's data prediction minus the image            (Poole et al. 2023)
    NFSD  the same without its noise                               (Katzir et al. 2024)
    VSD   the teacher's prediction minus that of a fake score,
          which is trained on the images                           (Wang et al. 2023)

with the objective of one-step generators, whose generator is the images themselves. The example
draws a comparison and prints the spread of each class around its mean. A method that samples keeps
the spread of real images.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from fewstep.data import to_float, to_uint8
from fewstep.data.spaces.grid import comparison
from fewstep.diffusion.time_sampling import log_normal_times
from fewstep.files import write_png
from fewstep.models.model import Model
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.resolve import load_dataset
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.divergences import (
    Divergence,
    integral_kl,
    noise_free_score_distillation,
    score_distillation,
)
from fewstep.objectives.generators import particles
from fewstep.progress import progress_bar
from fewstep.training.experiment import Experiment, check_guidance
from fewstep.training.optimizer import build_optimizer
from fewstep.training.state import initial_state
from fewstep.training.step import train_step

TEACHER = flags.DEFINE_string("teacher", None, "workdir of a trained denoiser", required=True)
OUT = flags.DEFINE_string("out", None, "a .png file for the comparison", required=True)
STEPS = flags.DEFINE_integer("steps", 1000, "updates of the images")
PER_CLASS = flags.DEFINE_integer("per_class", 8, "images of each class")
GUIDANCE = flags.DEFINE_float("guidance", 2.0, "guidance of the teacher, form A; 1 is none")

RATES = {"generator": 2e-2, "fake_score": 3e-4}
METHODS = {
    "SDS": score_distillation(),
    "NFSD": noise_free_score_distillation(),
    "VSD": integral_kl(),
}


def distil(
    model: Model, teacher: Mapping, labels: np.ndarray, divergence: Divergence, name: str
) -> np.ndarray:
    """Images uint8 with the given labels, optimized by one divergence."""
    objective = distribution_matching(
        model,
        divergence=divergence,
        generator=particles(model.network.shape, len(labels)),
        time_sampler=log_normal_times(model.path, 0.0, 1.0),
        fake_time_sampler=log_normal_times(model.path, 0.0, 1.0),
        guidance_scale=GUIDANCE.value,
    )
    optimizers = {
        player: build_optimizer(
            name="adam",
            learning_rate=RATES[player],
            schedule="linear" if player == "generator" else "constant",
            warmup_steps=0,
            b1=0.0,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=0.0,
            updates=STEPS.value,
        )
        for player in objective.players
    }
    frozen = {"teacher": teacher}
    state = initial_state(objective, optimizers, 0, frozen)
    step = jax.jit(train_step(objective, optimizers, 0), donate_argnums=0)
    for _ in progress_bar(range(STEPS.value), desc=name, unit="step"):
        state, _ = step(state, frozen, {"label": labels})
    return to_uint8(jax.device_get(state.networks["generator"]["x"]))


def spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Root mean square distance of pixels, in [-1, 1], from the mean of their class."""
    x = to_float(images)
    variances = [x[labels == label].var(axis=0, ddof=1).mean() for label in np.unique(labels)]
    return float(np.sqrt(np.mean(variances)))


def check(experiment: Experiment, out: Path) -> None:
    """Raises ValueError for a run that cannot be the teacher, or an impossible flag."""
    if not (experiment.objective.denoises and experiment.num_classes):
        raise ValueError(
            f"--teacher={TEACHER.value} must be a run with classes that predicts data and noise at "
            "every time: flow_matching, edm, ddpm or trigflow"
        )
    check_guidance(experiment, GUIDANCE.value)
    if STEPS.value < 1 or PER_CLASS.value < 2:
        raise ValueError("--steps must be 1 or more, and --per_class 2 or more")
    if out.suffix != ".png":
        raise ValueError(f"--out={out} must end in .png")


def main(_: list[str]) -> None:
    """Compare the methods; bad input becomes a message and exit code 2."""
    logging.set_verbosity(logging.ERROR)
    try:
        compare(Path(OUT.value))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def compare(out: Path) -> None:
    """Write the images of each method beside real ones, and print their spreads."""
    config, experiment, _, teacher, *_ = load_run(Request(None, Path(TEACHER.value)))
    check(experiment, out)
    train = load_dataset(config, writable=False).train
    classes = experiment.num_classes
    labels = np.arange(classes * PER_CLASS.value, dtype=np.int32) % classes
    made = {
        name: distil(experiment.model, teacher, labels, divergence, name)
        for name, divergence in METHODS.items()
        if GUIDANCE.value != 1.0 or not divergence.needs_guidance
    }
    members = [np.flatnonzero(train.labels == label)[: PER_CLASS.value] for label in range(classes)]
    real = train.images[np.stack(members, axis=1).ravel()]
    rows = {
        f"{name}, spread {spread(images, labels):.2f}": images
        for name, images in {**made, "real": real}.items()
    }
    shown = slice(0, 2 * classes)
    write_png(out, comparison({title: images[shown] for title, images in rows.items()}))
    print("\n".join([*rows, str(out)]))


if __name__ == "__main__":
    app.run(main)
