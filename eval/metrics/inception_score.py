"""Inception score: how sure a classifier is of each image, and how many classes it sees in all.

    IS = exp( E_x KL( p(y|x) || p(y) ) ),    p(y) = E_x p(y|x)          Salimans et al. 2016, sec. 4

From 1, where each image gets the same answer, to the number of classes, where each gets one class
for certain and all classes come equally often. The images are cut into splits, 10 as in the
original; p(y) is the mean over a split, and the mean and standard deviation over splits come back.

Traps of the protocol:
- Real images are not part of it: copies, one perfect image per class, or adversarial noise reach
  the highest score (Barratt & Sharma 2018).
- p(y) of few images is less even than it should be, so the score is biased downwards, more so for
  fewer images in a split. Compare only the same counts and splits; the custom is 50,000 images.
- The original splits rows as they come. Rows sorted by class would score 1, so here they are first
  shuffled by a seed, which is the same for images in random order.
- The deviation is that between splits of one set, divided by their number. It is no standard error
  of the mean, and says nothing about another training run.
- Another classifier is another score. Logits of 1,008 outputs, as those of the original network,
  hold 8 unused ones, which are cut off before the softmax in the numbers of most papers.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from fewstep.eval.features.feature_network import check_features

# The choice of Salimans et al. 2016.
SPLITS = 10


class InceptionScore(NamedTuple):
    """Mean and standard deviation over splits, the mean in [1, classes]."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, *, splits: int = SPLITS, seed: int = 0) -> InceptionScore:
    """Inception score of logits [N, classes], in float64; the same every time.

    Raises ValueError unless 1 <= splits <= N and the logits are finite.
    """
    if splits < 1:
        raise ValueError(f"splits = {splits}; at least 1 is needed")
    logits = np.asarray(logits, np.float64)
    check_features(logits, least=splits, name="logits")
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = [
        split_score(log_softmax(logits[part], axis=1)) for part in np.array_split(order, splits)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def split_score(log_p: np.ndarray) -> float:
    """exp of the mean KL(p(y|x) || p(y)) of logarithms of probabilities [N, classes]."""
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergences = np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1)
    return float(np.exp(divergences.mean()))
