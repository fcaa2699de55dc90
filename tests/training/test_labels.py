"""Which labels a run draws, by its config, its record, its data or its teacher."""

import numpy as np
import pytest

from fewstep.data import Dataset, Split
from fewstep.modes.recorded_run import fill_from_record
from fewstep.training.cluster.processes import warn_once
from fewstep.training.labels import (
    describe_label_shares,
    known_counts,
    label_counts,
    training_counts,
)
from fewstep.training.storage import workdir
from fewstep.training.storage.identity import RUN
from tests.training.runs import small_config

OWN, OTHER = (5, *(1,) * 8, 2), (1, *(3,) * 9)


def dataset(counts):
    """Blank images, `counts` of each class."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Dataset("made", Split(np.zeros((len(labels), 8, 8, 1), np.uint8), labels), None, 10)


def test_a_run_keeps_the_shares_of_the_data_that_it_began_with(tmp_path):
    config = small_config()
    assert label_counts(config, dataset(OWN), tmp_path) == OWN
    workdir.start_run(tmp_path, config, class_counts=OWN)
    for rule in (label_counts, training_counts):
        assert rule(config, dataset(OTHER), tmp_path) == rule(config, None, tmp_path) == OWN


def test_equal_shares_may_be_asked_for_and_need_no_data(tmp_path):
    config = small_config(**{"data.label_shares": "equal"})
    assert label_counts(config, dataset(OWN), tmp_path) == (1,) * 10
    assert (
        describe_label_shares((1,) * 10)
        == describe_label_shares((4,) * 10)
        == "every class in turn"
    )
    assert describe_label_shares(OWN) != describe_label_shares(OTHER)


def test_without_the_data_the_teacher_knows_the_shares(tmp_path):
    workdir.start_run(tmp_path / "teacher", small_config("edm"), class_counts=OWN)
    config = small_config("sim", teacher=f"{tmp_path / 'teacher'}@5")
    assert label_counts(config, None, tmp_path / "student") == OWN
    assert known_counts(config, dataset(OTHER)) == OTHER


def test_unknown_shares_are_equal_with_a_warning_and_stay_so(tmp_path, capsys):
    warn_once.cache_clear()
    config = small_config()
    assert label_counts(config, None, tmp_path) == (1,) * 10
    assert "the class counts of digits are unknown here" in capsys.readouterr().err
    workdir.start_run(tmp_path, config)
    assert training_counts(config, dataset(OWN), tmp_path) == (1,) * 10
    assert label_counts(config, dataset(OWN), tmp_path) == OWN  # an evaluation may know them


def test_a_run_without_classes_has_no_counts(tmp_path):
    config = small_config(**{"data.num_classes": 0})
    assert label_counts(config, dataset(OWN), tmp_path) == known_counts(config, dataset(OWN)) == ()
    assert describe_label_shares(()) == "none"


@pytest.mark.parametrize("asked", ["data", "equal"])
def test_a_run_of_a_version_without_shares_goes_on_with_equal_ones(
    tmp_path, monkeypatch, capsys, asked
):
    old = small_config().to_dict()
    del old["data"]["label_shares"]
    workdir.start_run(tmp_path, type(small_config())(old))
    config = small_config(**{"data.label_shares": asked})
    begun = fill_from_record(config, tmp_path)
    assert begun.data.label_shares == "equal"
    assert training_counts(begun, dataset(OWN), tmp_path) == (1,) * 10
    assert ("draws all classes equally often" in capsys.readouterr().err) == (asked == "data")
    workdir.start_run(tmp_path, begun, class_counts=OWN)  # is the same run
    assert training_counts(begun, dataset(OWN), tmp_path) == (1,) * 10
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    with pytest.raises(ValueError, match=r"data.label_shares \(equal there, data now\)"):
        workdir.start_run(tmp_path, small_config())
    assert (tmp_path / RUN).is_file()
