"""Label agreement: how often a classifier of real images predicts the requested label.

Traps of the protocol:
- The classifier errs on real images too. Print its accuracy on held-out real images beside each
  value: only the difference says something.
- Samples may agree more often than real images do. Typical images of a class, from a high guidance
  scale or a collapse of diversity, are easy to classify. Read the value beside recall.
- The classifier assigns a class to any image, noise included.
"""

import numpy as np


def label_agreement(classes: np.ndarray, labels: np.ndarray) -> float:
    """Share in [0, 1] of samples whose predicted class is their label. Both are [N].

    On held-out real images this is the classifier's accuracy.
    Raises ValueError if the counts differ, N is 0, or a label is the null class.
    """
    classes, labels = np.asarray(classes), np.asarray(labels)
    if labels.shape != classes.shape or not labels.size:
        raise ValueError(
            f"labels have shape {list(labels.shape)} for classes of shape {list(classes.shape)}; "
            "give one label to each sample, and at least one sample"
        )
    null = int(np.count_nonzero(labels < 0))
    if null:
        raise ValueError(
            f"{null} of {len(labels)} labels are the null class; "
            "agreement is defined for conditional samples alone"
        )
    return float(np.mean(classes == labels))
