"""Metrics of samples against real images, by name, and the protocol of each number.

A new metric is a file here, an entry in METRICS, and a row in docs/evaluation.md. Results, logs,
tables, pages and the choice of the best checkpoint read the entry.
"""

from functools import partial

from fewstep.eval.metrics import (
    agreement,
    frechet,
    inception_score,
    kernel,
    memorisation,
    neighbours,
    transport,
)
from fewstep.eval.metrics.metric import LESS, MORE, NEITHER, Metric

# The metric that names a protocol and that curves show.
MAIN = "frechet"
# Needs of metrics that compare single images. Fewer real images leave out all of these metrics.
ONE_BY_ONE = {"real_features": max(neighbours.DENSITY_NEIGHBOURS, kernel.FEWEST) + 1, "features": 1}
COPIES = {"features": 1, "train_features": 0, "held_out_features": 1}

POINTS = {"points": transport.FEWEST, "real_points": transport.FEWEST}
MODES = {"modes": 1, "mode_weights": 2}

between_points = partial(Metric, transport.transport, POINTS, format="{:.3f}", better=LESS)
spread_of_points = partial(Metric, transport.spread, POINTS, format="{:.3f}", better=NEITHER)
by_neighbours = partial(
    Metric, neighbours.manifold_metrics, ONE_BY_ONE, format="{:.3f}", better=MORE
)

# In the order of results and of columns.
METRICS = {
    MAIN: Metric(
        frechet.frechet_distance,
        {"statistics": 0, "real_statistics": 0},
        "Fréchet distance",
        "{:.3f}",
        LESS,
        in_text=True,
        note="The Fréchet distance compares samples with real images on the features named above. "
        "It is FID only where it is called FID. It is biased upwards, more so for fewer samples: "
        "compare only values of one protocol.",
    ),
    "agreement": Metric(
        agreement.label_agreement,
        {"classes": 1, "labels": 0},
        "label agreement",
        "{:.3f}",
        MORE,
        in_text=True,
        note="Label agreement is the share of samples to which a classifier of real images gives "
        "the requested label.",
    ),
    "inception_score": Metric(
        inception_score.inception_score,
        {"logits": inception_score.SPLITS},
        "inception score",
        "{:.2f}",
        MORE,
        part="mean",
    ),
    "kernel": Metric(
        kernel.kernel_distance,
        ONE_BY_ONE,
        "kernel distance",
        "{:.4f}",
        LESS,
        part="value",
        error="standard_error",
    ),
    "precision": by_neighbours(
        "precision",
        part="precision",
        in_text=True,
        note="Precision, recall, density and coverage use nearest neighbours on the same features. "
        "± is the standard error of one kernel distance.",
    ),
    "recall": by_neighbours("recall", part="recall", in_text=True),
    "density": by_neighbours("density", part="density"),
    "coverage": by_neighbours("coverage", part="coverage"),
    "closer": Metric(
        memorisation.memorisation,
        COPIES,
        "nearer to training images",
        "{:.3f}",
        NEITHER,
        part="share_closer",
        note="Nearer to training images is the share of samples that are nearer to a training "
        "image than all but 1 % of held-out real images are. A share far above 0.01 means copying.",
    ),
    "wasserstein_1": between_points(
        "W1",
        part="wasserstein_1",
        in_text=True,
        note="W1, W2 and energy distance compare points as they are. The real row is the floor of "
        "two exact sets: a distance below it is chance, or a collapse if spreads are small. The "
        "prior row is a sampler that does nothing.",
    ),
    "wasserstein_2": between_points("W2", part="wasserstein_2", in_text=True),
    "energy": between_points("energy distance", part="energy"),
    "deviation_ratio": spread_of_points(
        "deviation ratio",
        part="deviation",
        in_text=True,
        note="Deviation and quartile ratios are those of the coordinate where the ratio to the "
        "exact spread is farthest from 1, and the narrowest that of the smallest ratio.",
    ),
    "quartile_ratio": spread_of_points("quartile ratio", part="quartiles"),
    "narrowest_ratio": spread_of_points("narrowest quartile ratio", part="narrowest"),
    "mean_error": Metric(transport.spread, POINTS, "mean error", "{:.3f}", LESS, part="mean"),
    "mode_entropy": Metric(
        transport.mode_entropy, MODES, "mode entropy", "{:.3f}", NEITHER, in_text=True
    ),
    "mode_distance": Metric(
        transport.mode_distance, MODES, "mode weights off", "{:.3f}", LESS, in_text=True
    ),
}
