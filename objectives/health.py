"""Health metrics for one-step generators, whose loss says little. All are means over the batch.

gap             mean square of y = fake - teacher, 0 for a perfect generator; also logged in bins of
                the noise level, from data (0) to noise (1)
fake_error      mean squared error of the fake score on the generator's samples
teacher_error   mean squared error of the teacher on the generator's samples
fake_excess     fake_error above its minimum, 2 E fake^T (fake - x_g); 0 for an exact fake score.
                The minimum is E |x_g|^2 - E |E[x_g | x_t]|^2 by Pythagoras; fake stands for the
                unknown mean
fake_lag        E (x_g - fake)^T y / E |y|^2, the share by which y is too short to fit the samples;
                0 for an exact fake score, (1 - l) / l for one that has gone a share l of its way
sample_mean     mean of the samples
sample_std      standard deviation of the samples

docs/one_step.md describes these metrics in good and bad runs.
"""

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.objectives.base import Mean, Metrics, mean_metric, noise_level_means, per_example
from fewstep.objectives.distances import squared_error
from fewstep.objectives.divergences import Point


def health_metrics(point: Point, t: Array, path: Path) -> Metrics:
    """The metrics of a batch of points at the times t: [B]."""
    gap = per_example(squared_error(point.fake, point.teacher))
    fake_error = per_example(squared_error(point.x_g, point.fake))
    teacher_error = per_example(squared_error(point.x_g, point.teacher))
    short = per_example((point.x_g - point.fake) * (point.fake - point.teacher))
    means = {
        "gap": gap,
        "fake_error": fake_error,
        "teacher_error": teacher_error,
        "fake_excess": 2.0 * per_example(point.fake * (point.fake - point.x_g)),
        "sample_mean": jnp.mean(point.x_g),
        "sample_std": jnp.sqrt(jnp.mean(jnp.var(point.x_g, axis=0))),
    }
    metrics = {name: mean_metric(value) for name, value in means.items()}
    metrics["fake_lag"] = Mean(jnp.sum(short), jnp.sum(gap))
    return metrics | noise_level_means("gap", gap, t, path)
