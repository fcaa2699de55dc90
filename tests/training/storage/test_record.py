import json

import pytest

from fewstep.training.storage.identity import as_dict
from fewstep.training.storage.record import read_config_file
from tests.training.runs import small_config

FIELDS = as_dict(small_config())


def test_a_config_is_read_as_it_was_written(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    assert read_config_file(tmp_path / "config.json").to_dict() == FIELDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"seed": 1}\xff', "is not UTF-8"),
        (json.dumps(FIELDS).encode("utf-16"), "is not UTF-8"),
        (b"\0" * 100, "is not valid JSON"),
        (b"null", "holds no config of a run: it is null, not an object"),
        (b"[1, 2]", "it is a list, not an object"),
        (b"3.5", "it is a number, not an object"),
        (b'"text"', "it is a text, not an object"),
        (b"false", "it is true or false, not an object"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 900 + b"1" + b"}" * 900, "is nested too deeply"),
        (json.dumps({**FIELDS, "data": 3}).encode(), "data=3 must be a group of fields"),
        (json.dumps({**FIELDS, "data": None}).encode(), "data=None must be a group of fields"),
        (json.dumps({**FIELDS, "seed": "0"}).encode(), "seed='0' must be a whole number"),
        (json.dumps({**FIELDS, "steps": {"a": 1}}).encode(), "must be a whole number"),
        (json.dumps({**FIELDS, "method": ["edm"]}).encode(), "must be a text"),
        (json.dumps({**FIELDS, "debug": 0}).encode(), "debug=0 must be True or False"),
        (json.dumps({**FIELDS, "ema": {"decays": 0.9}}).encode(), "must be a sequence, each"),
        (json.dumps({**FIELDS, "a.b": 0}).encode(), "holds no config of a run: "),
        (b'{"a": ' * 21 + b"1" + b"}" * 21, "is nested too deeply"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "config of a run: "),
    ],
)
def test_what_is_wrong_with_a_config_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_config_file(path)
    text = str(error.value)
    assert text.startswith(f"{path} ") and text.endswith("in the run's checkpoints too")
    assert len(text) < 1000


def test_values_that_an_older_version_allowed_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**FIELDS, "steps": 0}))
    assert read_config_file(tmp_path / "config.json").steps == 0
