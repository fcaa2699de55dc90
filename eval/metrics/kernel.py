"""Kernel distance between two sets of features: squared maximum mean discrepancy, cubic kernel.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(a, b) = (a . b / D + 1)^3

Binkowski et al. 2018; on Inception features it is KID. x and x' are independent real points, y and
y' independent generated ones. The unbiased estimator of Gretton et al. 2012, eq. 3, takes means
over pairs of different points, without k(x, x), of M real and N generated points:

    sum_{i != j} k(x_i, x_j) / M(M-1) + sum_{i != j} k(y_i, y_j) / N(N-1) - 2 sum k(x_i, y_j) / MN

Its cost is quadratic in the counts. So a seed shuffles both sets and cuts them into min(M, N) //
block disjoint pieces (one, if that is 0), and the value is the mean over pieces. Each point is used
once, so the pieces are independent, and the variance of the mean is the sum of the pieces'
variances over the square of their number. The variance of a piece is the delete-one jackknife of
its U-statistic (Arvesen 1969), exact to first order. The spread between pieces would say little for
a few of them and nothing for one. The bootstrap repeats points, which brings back the k(x, x) that
the estimator leaves out.

Traps of the protocol:
- An unbiased value is negative about half of the time if the distributions are equal. Do not clip.
- The standard error is that of this estimate, over draws of both sets. The jackknife is never too
  small on average (Efron & Stein 1981). It is about sqrt(2) too large if the distributions are
  equal, and right if they clearly differ. Papers often print the deviation between random subsets
  of 1,000 instead, which does not shrink with more samples.
- A cubic kernel compares only moments up to the third: distributions that share them measure 0.
- Without bias, values of different counts may be compared; those of different features may not.
- Literature often prints 1,000 times the value.
"""

from typing import NamedTuple

import numpy as np

from fewstep.eval.features.feature_network import check_dimensions, check_features

# The subset size of Binkowski et al. 2018.
BLOCK = 1000
DEGREE = 3
# Rows of the kernel matrix that are in memory at once.
ROWS = 1024
# The jackknife leaves one point out, and the estimator needs a pair.
FEWEST = 3


class KernelDistance(NamedTuple):
    """MMD^2, which may be negative, and its standard error over draws of both sets."""

    value: float
    standard_error: float


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, *, block: int = BLOCK, seed: int = 0
) -> KernelDistance:
    """Unbiased MMD^2 of real features [M, D] and generated ones [N, D]. Deterministic.

    Raises ValueError if D differs, block < 3, or a set has fewer than 3 points or is not finite.
    """
    if block < FEWEST:
        raise ValueError(f"block = {block} points; at least {FEWEST} are needed")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    check_features(real, least=FEWEST, name="real features")
    check_features(generated, least=FEWEST, name="generated features")
    check_dimensions(real, generated)
    pieces = max(min(len(real), len(generated)) // block, 1)
    rng = np.random.default_rng(seed)
    chosen_real, chosen_generated = (
        np.array_split(rng.permutation(len(features)), pieces) for features in (real, generated)
    )
    values, variances = np.transpose(
        [
            mmd_and_variance(real[i], generated[j])
            for i, j in zip(chosen_real, chosen_generated, strict=True)
        ]
    )
    return KernelDistance(float(values.mean()), float(np.sqrt(variances.sum()) / pieces))


def mmd_and_variance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Unbiased MMD^2 of points [M, D] and [N, D], and its jackknife variance."""
    m, n = len(x), len(y)
    x_with_y, y_with_x = kernel_sums(x, y)
    x_with_x, y_with_y = off_diagonal_sums(x), off_diagonal_sums(y)
    xx, yy = x_with_x.sum(), y_with_y.sum()
    cross = x_with_y.sum()
    rest_x, rest_y = xx / (m * (m - 1)), yy / (n * (n - 1))
    without_x = (xx - 2 * x_with_x) / ((m - 1) * (m - 2)) - 2 * (cross - x_with_y) / ((m - 1) * n)
    without_y = (yy - 2 * y_with_y) / ((n - 1) * (n - 2)) - 2 * (cross - y_with_x) / ((n - 1) * m)
    # Omits rest_y in the first and rest_x in the second: constants do not change a variance.
    variance = (m - 1) * without_x.var() + (n - 1) * without_y.var()
    return rest_x + rest_y - 2 * cross / (m * n), variance


def kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row sums [M] and column sums [N] of the kernel matrix, computed in blocks of rows."""
    from sklearn.metrics.pairwise import polynomial_kernel
    from sklearn.utils import gen_batches

    rows, columns = np.empty(len(x)), np.zeros(len(y))
    for part in gen_batches(len(x), ROWS):
        # The defaults of gamma and coef0 are 1 / D and 1.
        kernel = polynomial_kernel(x[part], y, degree=DEGREE)
        rows[part] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
    return rows, columns


def off_diagonal_sums(x: np.ndarray) -> np.ndarray:
    """Sums [M] of the kernel between each point [M, D] and all others."""
    itself = (np.einsum("id,id->i", x, x) / x.shape[1] + 1.0) ** DEGREE
    return kernel_sums(x, x)[0] - itself
