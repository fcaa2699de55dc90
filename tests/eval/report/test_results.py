import json

import numpy as np
import pytest

from fewstep.eval.report.results import (
    FIELDS,
    MEASURED,
    OPTIONAL,
    ROWS,
    load_result,
    load_results,
    save_results,
)
from tests.eval.evaluated import MEASUREMENT

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


SHOWN = {
    "id": "a",
    "data": "digits",
    "images_seen": 384000,
    "metric": "fd-classifier-1k",
    "protocol": {
        "measurement": MEASUREMENT,
        "sampling": {
            "method": "cd",
            "network": "ema_0.999",
            "step": 3000,
            "sampler": "heun",
            "steps": 4,
            "guidance_scale": 1.0,
            "seed": -1,
        },
    },
    "metrics": {"frechet": 12.345678},
    "real": {"frechet": 0.3},
    "prior": {"frechet": 9.5},
    "rows": {name: {"frechet": 1.5} for name in ROWS},
    "warnings": ["few"],
    "skipped": "metrics",
}
FRECHET = {"metrics.*": "metrics.frechet", "real.*": "real.frechet", "prior.*": "prior.frechet"} | {
    f"rows.{name}.*": f"rows.{name}.frechet" for name in ROWS
}
VALUES = (None, [], [1], {}, {"a": 1}, "text", True, -3, 2.5, 1e20, 10**30)


def change_field(field, value, absent=False):
    """SHOWN with another value of a field, or without the field."""
    result = json.loads(json.dumps(SHOWN))
    *parents, last = field.split(".")
    inside = result
    for name in parents:
        inside = inside[name]
    inside[last] = value
    if absent:
        del inside[last]
    return result


def read(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    return load_result(tmp_path / "a.json")


def test_a_result_is_read_as_it_is(tmp_path):
    assert read(tmp_path, SHOWN) == SHOWN
    unmeasured = change_field("protocol.measurement", {})
    assert read(tmp_path, unmeasured) == unmeasured
    for field in OPTIONAL:
        assert read(tmp_path, change_field(field, None, absent=True))


@pytest.mark.parametrize("name", [*FIELDS, *MEASURED])
def test_a_field_of_another_type_is_named(tmp_path, name):
    field, kind = FRECHET.get(name, name), (FIELDS | MEASURED)[name]
    wrong = [value for value in VALUES if not kind.holds(value)]
    assert len(wrong) >= 5
    for value in wrong:
        # In an object that holds another type in itself, that is named.
        with pytest.raises(
            ValueError, match=rf"a\.json is no result .*{field}[. ].*; delete it"
        ) as e:
            read(tmp_path, change_field(field, value))
        assert len(str(e.value)) < 500
    if name not in (*OPTIONAL, *FRECHET):
        with pytest.raises(ValueError, match=rf"a\.json is no result .*lacks.* {field}.*; delete"):
            read(tmp_path, change_field(field, None, absent=True))


@pytest.mark.parametrize(
    ("kind", "least", "beyond"),
    [
        ("metrics.frechet", -1e15, -1.1e15),
        ("metrics.frechet", 10**15, 10**15 + 1),
        ("images_seen", 0, -1),
        ("images_seen", 2**53, 2**53 + 1),
        ("protocol.sampling.steps", 1, 0),
        ("protocol.measurement.samples", 1, 0),
        ("protocol.sampling.seed", -(2**53), -(2**53) - 1),
    ],
)
def test_numbers_have_limits(tmp_path, kind, least, beyond):
    read(tmp_path, change_field(kind, least))
    with pytest.raises(ValueError, match=f"{kind} is "):
        read(tmp_path, change_field(kind, beyond))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"a": ' + b"[" * 10**5, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}", "delete it"),
        (b"null", "holds no JSON object"),
        (b"3", "holds no JSON object"),
        (b'{"a": {"b": NaN}}', "a.b is nan"),
        (b'{"a": [1e999]}', r"a\[0\] is inf"),
        (b'{"a": "\\ud800"}', "a is not Unicode"),
    ],
)
def test_files_that_no_evaluation_wrote_are_one_error(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json.*{message}.*"):
        load_result(tmp_path / "a.json")
