"""Inception score: how sure a classifier is of each image, and how many classes it sees in all.

    IS = exp( E_x KL( p(y|x) || p(y) ) ),    p(y) = E_x p(y|x)          Salimans et al. 2016, sec. 4

The score is 1 if all images get the same answer. It is the number of classes if each image gets one
class for certain and all classes are equally frequent. The images are cut into 10 splits, as in the
original; p(y) is the mean over a split. The result is the mean and standard deviation over splits.

Traps of the protocol:
- The score ignores real images: copies, one perfect image per class, or adversarial noise reach the
  highest score (Barratt & Sharma 2018).
- p(y) of few images is less even than it should be. So the score is biased downwards, more so for
  fewer images in a split. Compare only equal counts and splits; 50,000 images are customary.
- The original splits rows in their given order, and rows sorted by class would score 1. Here a seed
  shuffles them first, which changes nothing for images in random order.
- The deviation is that between splits, with their number as the divisor. It is not a standard error
  of the mean, and says nothing about another training run.
- Another classifier gives another score. 8 of the original network's 1,008 logits are unused; most
  papers' numbers cut them off before the softmax.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from fewstep.eval.features.feature_network import check_features

# The choice of Salimans et al. 2016.
SPLITS = 10


class InceptionScore(NamedTuple):
    """Mean, in [1, classes], and standard deviation over splits."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, *, splits: int = SPLITS, seed: int = 0) -> InceptionScore:
    """Inception score of logits [N, classes], in float64. Deterministic.

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
    """exp of the mean KL(p(y|x) || p(y)), from log probabilities [N, classes]."""
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergences = np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1)
    return float(np.exp(divergences.mean()))
