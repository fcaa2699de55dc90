"""What perfect samples measure, labelled by shares or all alike: python -m bench.label_shares

Real digits are split into halves. Of one half, one class is kept whole and a tenth of the others:
the data. 1,000 digits of the other half, with the labels that an evaluation would ask for, are
samples from a sampler without error. Means over splits and classes of the Frechet distance on
pixels (fd-pixels-1k).
"""

import numpy as np
from sklearn.datasets import load_digits

from fewstep.data import Split, class_counts, proportional_labels
from fewstep.eval.metrics.frechet import frechet_distance, statistics

SAMPLES, SPLITS, RATIO, LARGEST = 1000, 3, 10, 16


def distances(seed: int, frequent: int) -> dict[str, float]:
    """The distance by each rule of data.label_shares, for one split and one frequent class."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.floor(pixels * 255 / LARGEST + 0.5) / 127.5 - 1.0
    rng = np.random.default_rng(seed)
    ours, others = np.array_split(rng.permutation(len(labels)), 2)
    kept = [ours[labels[ours] == c] for c in range(10)]
    kept = [k if c == frequent else k[: len(k) // RATIO] for c, k in enumerate(kept)]
    data = np.concatenate(kept)
    counts = class_counts(Split(pixels[data], labels[data]), 10)
    found = {}
    for rule, shares in {"data": counts, "equal": (1,) * 10}.items():
        numbers = np.bincount(proportional_labels(shares, SAMPLES), minlength=10)
        chosen = [rng.choice(others[labels[others] == c], n) for c, n in enumerate(numbers)]
        samples = pixels[np.concatenate(chosen)]
        found[rule] = frechet_distance(statistics(samples), statistics(pixels[data]))
    return found


def main() -> None:
    """Print the mean by each rule."""
    runs = [distances(seed, c) for seed in range(SPLITS) for c in range(10)]
    for rule in runs[0]:
        print(f"data.label_shares={rule}: {np.mean([run[rule] for run in runs]):.2f}")


if __name__ == "__main__":
    main()
