import json

import numpy as np
import pytest

from eval.results import load_results, save_results

RESULT = {
    "id": "fd-pixels-1k-3f2a91c0aa12",
    "images_seen": 384000,
    "protocol": {"measurement": {"published_weights": False}, "sampling": {"steps": 4}},
    "metrics": {"frechet": 12.345678, "agreement": 0.5},
    "warnings": [],
}


def test_results_return_as_they_were_saved(tmp_path):
    save_results(tmp_path / "new" / "results.json", RESULT)
    assert load_results(tmp_path / "new" / "results.json") == RESULT


def test_numpy_numbers_and_keys_become_plain(tmp_path):
    path = tmp_path / "results.json"
    save_results(path, {"by_steps": {np.int64(4): {"frechet": np.float32(0.5), "n": np.arange(2)}}})
    assert json.loads(path.read_text()) == {"by_steps": {"4": {"frechet": 0.5, "n": [0, 1]}}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_a_number_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "results.json"
    save_results(path, RESULT)
    with pytest.raises(ValueError, match=r"by_steps\.4\.pair\[1\] is -?(nan|inf)"):
        save_results(path, {"by_steps": {"4": {"pair": [1.0, value]}}})
    assert load_results(path) == RESULT


def test_a_value_without_a_form_in_json_is_named(tmp_path):
    with pytest.raises(ValueError, match="floor.what is a set"):
        save_results(tmp_path / "results.json", {"floor": {"what": {1}}})


def test_a_failed_write_keeps_the_old_results_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save_results(path, RESULT)

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_results(path, {})
    assert load_results(path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_bad_result_files_are_named(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="results.json does not exist"):
        load_results(path)
    path.write_text('{"name": "shor')
    with pytest.raises(ValueError, match="results.json is not JSON"):
        load_results(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="results.json holds no JSON object"):
        load_results(path)
