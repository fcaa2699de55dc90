import numpy as np
import pytest

from fewstep.eval.metrics.agreement import label_agreement


def test_agreement_is_the_share_of_labels_seen():
    assert label_agreement(np.array([3, 1, 4, 1]), np.array([3, 1, 2, 0])) == 0.5


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (np.arange(3), np.arange(2), "one label to each sample"),
        (np.arange(0), np.arange(0), "at least one sample"),
        (np.arange(3), np.array([0, -1, 2]), "1 of 3 labels are the null class"),
    ],
)
def test_agreement_of_what_has_no_labels_is_refused(classes, labels, message):
    with pytest.raises(ValueError, match=message):
        label_agreement(classes, labels)


def test_the_first_class_is_a_class():
    assert label_agreement(np.array([0]), np.array([0])) == 1.0
