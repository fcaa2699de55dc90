"""Label agreement: how often a classifier of real images sees the label that was asked for.

Traps of the protocol:
- The classifier errs on real images too. Print its agreement with held-out real labels, which is
  its accuracy, beside each value; a difference from that says something, the value alone does not.
- Samples may agree more often than real images do: typical images of a class, at a high guidance
  scale or after a collapse of diversity, are easy to classify. Read it beside recall.
- The classifier answers with a class for any image, noise included.
"""

import numpy as np


def label_agreement(classes: np.ndarray, labels: np.ndarray) -> float:
    """Share in [0, 1] of samples whose class [N], as a classifier sees it, is their label [N].

    On held-out real images it is the classifier's accuracy.
    Raises ValueError if the counts differ, there are none, or a label is the null class.
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
