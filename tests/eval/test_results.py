import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval.curves import curve_lines
from eval.page import results_page
from eval.results import load_results, save_results

RESULT = {
    "name": "shortcut",
    "data": "digits",
    "step": 3000,
    "images_seen": 384000,
    "network": "ema_0.999",
    "samples": 1000,
    "guidance_scale": 1.0,
    "seed": 0,
    "feature": "pixels",
    "floor": {"frechet": 0.34, "what": "half of the real images to the other half"},
    "classifier_accuracy": 0.981,
    "by_steps": {
        "16": {"frechet": 0.6, "agreement": 0.975},
        "4": {"frechet": 0.7, "agreement": 0.9},
        "1": {"frechet": 12.345678, "agreement": 0.5, "recall": 0.25},
    },
}
VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """The rows of the tables, the addresses and the text of a page; checks that tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            if name in ("src", "srcset", "href"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def make(tmp_path, *results, title="Digits", pictures=None, curves=None):
    path = tmp_path / "page.html"
    results_page(path, title=title, results=results, pictures=pictures or {}, curves=curves or {})
    return Page(path.read_text())


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "grid.png"
    Image.new("L", (3, 2), 77).save(path)
    return path


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


def test_table_holds_steps_in_order_then_real_images(tmp_path):
    rows = make(tmp_path, RESULT).rows
    assert rows[0] == ["steps", "Fréchet distance ↓", "label agreement ↑", "recall ↑"]
    for fact in ("shortcut", "step 3,000", "384,000 images seen", "1,000 samples", "pixels"):
        assert fact in rows[1][0]
    assert rows[2:] == [
        ["1", "12.346", "0.500", "0.250"],
        ["4", "0.700", "0.900", "–"],
        ["16", "0.600", "0.975", "–"],
        ["real", "0.340", "0.981", "–"],
    ]


def test_methods_share_a_table_and_new_metrics_show_under_their_name(tmp_path):
    other = {"name": "flow matching", "by_steps": {"8": {"novelty": 0.123456}}}
    rows = make(tmp_path, RESULT, other).rows
    assert rows[0][-1] == "novelty"
    assert rows[-2:] == [["flow matching "], ["8", "–", "–", "–", "0.1235"]]


def test_a_result_without_metrics_says_why(tmp_path):
    rows = make(tmp_path, {"name": "a", "skipped": "metrics", "by_steps": {"1": {}}}).rows
    assert rows == [["steps"], ["a skipped metrics"], ["1"]]


def test_page_says_what_the_numbers_are_not(tmp_path):
    text = make(tmp_path, RESULT).text
    assert "not FID" in " ".join(text.split())
    assert "biased upwards" in text
    assert "half of the real images to the other half" in text


def test_page_needs_nothing_but_itself(tmp_path, png):
    curves = {"run": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
    page = make(tmp_path, RESULT, pictures={"samples": png}, curves=curves)
    assert len(page.addresses) == 3
    contents = []
    for address in page.addresses:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        contents.append(base64.b64decode(content, validate=True))
    assert contents[0] == png.read_bytes()
    assert all(content.startswith(b"\x89PNG") for content in contents)
    assert contents[1] != contents[2]


@pytest.mark.parametrize(("width", "least"), [(300, 225), (720, 540), (2600, 544)])
def test_a_picture_shrinks_to_a_legible_width(tmp_path, width, least):
    Image.new("L", (width, 2)).save(tmp_path / "wide.png")
    make(tmp_path, RESULT, pictures={"wide": tmp_path / "wide.png"})
    assert f'style="min-width: {least}px"' in (tmp_path / "page.html").read_text()


def test_text_is_escaped(tmp_path, png):
    nasty = '<script>"&</script>'
    result = {**RESULT, "name": nasty, "data": nasty, "floor": {"frechet": 1.0, "what": nasty}}
    result["by_steps"] = {"1": {nasty: 1.0}}
    page = make(
        tmp_path,
        result,
        title=nasty,
        pictures={nasty: png},
        curves={r"$\x$ <c>": [{"step": 1, "loss": -1.0}]},
    )
    assert page.text.count(nasty) == 7
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_losses_are_one_line_per_player_and_rows_without_one_are_left_out():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "frechet": 9.0}, {"step": 3, "loss": 1.0}]
    players = [{"step": 1, "generator/loss": 5.0, "fake_score/loss": 6.0, "loss_scale": 7.0}]
    assert curve_lines({"a": rows, "b": players, "c": []}, "loss") == {
        "a": [(1, 2.0), (3, 1.0)],
        "b, generator": [(1, 5.0)],
        "b, fake_score": [(1, 6.0)],
    }


def test_without_losses_there_is_no_curve(tmp_path):
    assert "Training loss" not in make(tmp_path, RESULT, curves={"a": []}).text


def test_bad_input_of_the_page_is_named(tmp_path):
    with pytest.raises(ValueError, match="lacks 'by_steps'"):
        make(tmp_path, {"name": "a"})
    with pytest.raises(FileNotFoundError, match=r"none\.png, the picture 'samples'"):
        make(tmp_path, RESULT, pictures={"samples": tmp_path / "none.png"})
