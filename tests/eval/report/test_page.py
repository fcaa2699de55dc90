import base64
import inspect
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from fewstep.eval.metrics.bootstrap import interval
from fewstep.eval.report.page import results_page
from fewstep.eval.report.quantities import duration_text, short_number
from fewstep.eval.report.runs import load_runs
from tests.eval.evaluated import (
    LABELS,
    METHODS,
    WARNING,
    evaluated_run,
    metrics_at,
    save_evaluation,
    six_methods,
)

VOID = {"meta", "img", "source", "wbr"}
CHROMIUM = shutil.which("chromium")
COLUMNS = [
    "method",
    "steps",
    "fd-classifier-1k\u00a0↓",
    "label agreement\u00a0↑",
    "inception score\u00a0↑",
    "kernel distance\u00a0↓",
    "precision\u00a0↑",
    "recall\u00a0↑",
    "density\u00a0↑",
    "coverage\u00a0↑",
    "nearer to training images",
    "seeds",
    "images seen",
    "wall-clockof training",
]


class Page(HTMLParser):
    """Rows of the table of results, addresses and text of a page; checks that tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.addresses, self.text = [], [], [], ""
        self.values, self.hidden = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self.hidden.append("sortable" not in found.get("class", ""))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr" and not self.hidden[-1]:
            self.rows.append([])
            self.values.append([])
        if tag in ("td", "th") and not self.hidden[-1]:
            self.rows[-1].append("")
            self.values[-1].append(found.get("data-value"))
        self.addresses += [v for name, v in attributes if name in ("src", "srcset", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open) and not self.hidden[-1]:
            self.rows[-1][-1] += data


def write(path, *folders, title="Digits"):
    """The page of the runs in these folders, as text."""
    results_page(path / "page.html", title=title, runs=load_runs(folders))
    return (path / "page.html").read_text()


def read(path, *folders, **fields):
    """The page of the runs in these folders, parsed."""
    return Page(write(path, *folders, **fields))


def pictures(page):
    """The PNG files of a page, in its order: drawings are there twice, for dark pages first."""
    return [
        base64.b64decode(address.partition(",")[2], validate=True) for address in page.addresses
    ]


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """The page of six methods, at five numbers of steps, with two seeds."""
    path = tmp_path_factory.mktemp("six")
    return write(path, *six_methods(path))


def test_every_number_is_in_its_cell(tmp_path):
    folder = evaluated_run(tmp_path / "a", "cd", frechet=0.5, fall=1.0, steps=(4, 1))
    page = read(tmp_path, folder)
    assert page.rows == [
        COLUMNS,
        ["cd", "1", "0.500", "0.990", "9.10", "0.0005± 0.0002", "0.875", "0.533", "0.950", "0.910"]
        + ["0.010", "1", "384,000", "1 min 0 s"],
        ["cd", "4", "0.125", "0.998", "9.47", "0.0001± 0.0002", "0.894", "0.711", "0.988", "0.940"]
        + ["0.010", "1", "384,000", "1 min 0 s"],
        ["real images", "", "0.340", "0.985", *[""] * 10],
    ]
    assert page.values[1][:4] == ["cd", "1", "0.5", repr(metrics_at(0.5, 1)["agreement"])]


def test_several_seeds_have_a_mean_an_interval_and_a_least(tmp_path):
    values = (0.25, 0.5, 0.9)
    folders = [
        evaluated_run(tmp_path / str(seed), "cd", seed, frechet=value, steps=(1,))
        for seed, value in enumerate(values)
    ]
    page = read(tmp_path, *folders)
    heading, row = page.rows[0], page.rows[1]
    assert heading[2] == "fd-classifier-1k\u00a0↓mean, [95 % interval], least"
    found = interval(values)
    assert row[2] == f"0.550[{found.low:.3f}, {found.high:.3f}], 0.250"
    assert 0.25 <= found.low < 0.55 < found.high <= 0.9
    assert float(page.values[1][2]) == pytest.approx(0.55)
    assert row[3] == f"{1 - 0.02 * 0.55:.3f}"
    assert row[heading.index("seeds")] == "3"


def test_every_method_and_number_of_steps_has_a_row(six):
    rows = Page(six).rows[1:-1]
    assert [(row[0], row[1]) for row in rows] == [
        (method, str(steps)) for method in METHODS for steps in (1, 2, 4, 8, 128)
    ]
    for method, steps, cell, *_ in rows:
        frechet, fall = METHODS[method]
        mean = frechet * 1.06 * int(steps) ** -fall
        assert cell.startswith(f"{mean:.3f}"), (method, steps)


def test_a_metric_without_a_name_shows_under_its_own(tmp_path):
    folder = evaluated_run(tmp_path / "a", steps=(1,))
    (path,) = (folder / "eval").glob("*.json")
    result = json.loads(path.read_text())
    result["metrics"] = {"novelty": 0.123456}
    with np.load(path.with_suffix(".npz")) as file:
        samples = {name: file[name] for name in ("x", "y", "way")}
    save_evaluation(path, result, **samples)
    page = read(tmp_path, folder)
    assert page.rows[0][2] == "novelty" and page.rows[1][2] == "0.1235"


def test_the_network_evaluations_of_training_are_shown_where_they_are_known(tmp_path):
    a, b = load_runs([evaluated_run(tmp_path / m, m, steps=(1,)) for m in ("cd", "ect")])
    a = a._replace(budget={**a.budget, "network_evaluations": 1_536_000})
    results_page(tmp_path / "page.html", title="Digits", runs=[a, b])
    page = Page((tmp_path / "page.html").read_text())
    column = page.rows[0].index("network evaluationsin training")
    assert [row[column] for row in page.rows[1:3]] == ["1.54 M", "–"]


def test_numbers_are_short():
    counts = [1200, 1_234_567, 2e9, 3e12]
    assert list(map(short_number, counts)) == ["1,200", "1.23 M", "2 G", "3 T"]
    assert [duration_text(s) for s in (45, 725, 12000)] == ["45 s", "12 min 5 s", "3 h 20 min"]


def test_the_page_says_how_numbers_were_measured(tmp_path):
    text = read(tmp_path, evaluated_run(tmp_path / "a", steps=(1,))).text
    line = (
        "fd-classifier-1k: 1,000 samples, labelled every class in turn, against digits, all images "
        "(77aa01000000), on features of classifier (weights 9c0f5a7be1d2)"
    )
    assert text.count(line) == 2  # above the table and beside the distances
    assert f"Warning: {WARNING}." in text
    for field in ("reference_sha256", 52 * "0", "x / 127.5 - 1", "guidance_scale", "ema_0.999"):
        assert field in text
    assert "sampler heun, guidance 1, network ema_0.999, training step 3000, seed 0" in text


def test_a_run_that_was_not_measured_says_why(tmp_path):
    page = read(tmp_path, evaluated_run(tmp_path / "a", "cd", steps=(1,), measurement={}))
    assert page.rows[0][:3] == ["method", "steps", "seeds"]
    assert page.rows[1][:3] == ["cd", "1", "1"] and len(page.rows) == 2
    assert "Nothing was measured" in page.text
    assert f"{tmp_path}/a has no metrics: the data set digits is not here." in page.text
    assert "Fréchet distance by number of steps" not in page.text


def test_the_page_needs_nothing_but_itself(six):
    page = Page(six)
    # Six methods: distances, loss, deviation, distance while training, loss by noise level, each
    # for light and dark pages; samples at five numbers of steps, and the trajectory from noise.
    assert len(page.addresses) == 2 * 5 + 5 + 1
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert all(png.startswith(b"\x89PNG") for png in pictures(page))
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", six))
    dark, light = pictures(page)[:2]
    assert dark != light


def test_style_and_script_are_files_that_the_page_takes_in_whole(six):
    folder = Path(inspect.getfile(results_page)).parent
    for tag, name in (("style", "page.css"), ("script", "table.js")):
        assert f"<{tag}>\n{(folder / name).read_text()}</{tag}>" in six


def test_text_is_escaped(tmp_path):
    nasty = '<script>"&</script>'
    measured = {"rows": [{"step": s, "loss": 1.0} for s in (1, 2)], "steps": (1,)}
    folder = evaluated_run(tmp_path / "<b>a", nasty, sampling={"sampler": nasty}, **measured)
    written = write(tmp_path, folder, title=nasty)
    page = Page(written)
    assert written.count("<script") == 1 and "<b>" not in written
    assert page.rows[1][0] == nasty and page.values[1][0] == nasty
    assert "<b>a" in page.text and page.text.count(nasty) >= 6


def test_rows_of_a_picture_say_which_noise_and_labels_they_share(tmp_path):
    fields = {"steps": (1,)}
    a = evaluated_run(tmp_path / "a", "cd", 2, **fields)
    b, c = (evaluated_run(tmp_path / f"b{seed}", "ect", seed, **fields) for seed in (1, 2))
    d = evaluated_run(tmp_path / "d", "sim", 1, **fields)
    e = evaluated_run(tmp_path / "e", "mean flow", 1, labels=LABELS[::-1], **fields)
    f = evaluated_run(tmp_path / "f", "uncond", 1, labels=0 * LABELS - 1, **fields)
    labels = "the labels are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9."
    same = f"The noise is the same in each row (seed 2); {labels}"
    assert same in read(tmp_path, a, b, c).text
    differ = f"The noise differs between rows (seed 1: ect, sim; seed 2: cd); {labels}"
    assert differ in read(tmp_path, a, b, d).text
    assert "(seed 1); the labels differ between methods." in read(tmp_path, d, e).text
    assert "(seed 1); there are no labels." in read(tmp_path, f).text


def test_classes_are_shown_by_name(tmp_path, monkeypatch):
    names = ("T-shirt/top", "1", *map(str, range(2, 9)), "<b>boot")
    monkeypatch.setattr("fewstep.eval.report.runs.class_names", lambda folder: names)
    page = read(tmp_path, evaluated_run(tmp_path / "a", "cd", 2, steps=(1,)))
    assert "the labels are 0 (T-shirt/top), 1, 2, 3, 4, 5, 6, 7, 8, 9 (<b>boot)." in page.text
    assert "0 (T-shirt/top), 1, 2, 3, 4, 5, 6, 7, 8, 9 (<b>boot)\n" in page.text


def test_a_picture_holds_the_images_of_each_method(tmp_path):
    a = evaluated_run(tmp_path / "a", "cd", 0, steps=(1, 2), frechet=0.1)
    b = evaluated_run(tmp_path / "b", "ect", 0, steps=(2,), frechet=2.0)
    page = read(tmp_path, a, b)
    images = [np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in pictures(page)]
    samples = [image for image in images if image.shape[1] == 10 * 9 * 4 - 4 + 16]
    assert [image.shape[0] for image in samples] == [24 + 32 + 8, 2 * (24 + 32) + 8]
    for row, run in enumerate(load_runs([a, b])):
        top = 24 + row * 56
        shown = samples[1][top : top + 32 : 4, 8:-8:4]
        first = run.images[2][:10, ..., 0]
        separate = np.concatenate([np.pad(x, ((0, 0), (0, 1))) for x in first], axis=1)[:, :-1]
        separators = (np.arange(89) + 1) % 9 == 0
        np.testing.assert_array_equal(shown[:, ~separators], separate[:, ~separators])


def test_large_images_are_shown_smaller(tmp_path):
    folder = evaluated_run(tmp_path / "a", steps=(1,), rows=[])
    (path,) = (folder / "eval").glob("*.npz")
    x = np.zeros((10, 256, 256, 3), np.uint8)
    x[:, ::2, ::2] = 200
    np.savez(path, x=x, y=LABELS[:10], way=np.zeros((0,)))
    (png,) = pictures(read(tmp_path, folder))[2:]
    image = np.asarray(Image.open(io.BytesIO(png)))
    assert image.shape == (24 + 128 + 8, 10 * 129 - 1 + 16, 3)
    assert (image[30:100, 10:100] == 50).all()


def test_distances_while_training_are_drawn_only_if_measured_alike(tmp_path):
    evaluate = {"features": "pixels", "reference": "all", "num_samples": 1000, "weights": ""}
    a = evaluated_run(tmp_path / "a", "cd", steps=(1,))
    b = evaluated_run(tmp_path / "b", "ect", steps=(1,))
    c = evaluated_run(tmp_path / "c", "sim", steps=(1,), config={"evaluate": evaluate})
    measured = "Measured while training: features classifier, 1000 samples, reference all"
    both = read(tmp_path, a, b).text
    assert measured in both
    assert "Fréchet distance in 1 step, while training" in both and "by cost" not in both
    assert "while training" not in read(tmp_path, a, c).text


def test_methods_of_known_cost_are_also_compared_by_it(tmp_path):
    folders = [evaluated_run(tmp_path / name, name, steps=(1,)) for name in ("cd", "ect")]
    runs = [
        run._replace(budget={**run.budget, "network_evaluations": 9e6})
        for run in load_runs(folders)
    ]
    results_page(tmp_path / "page.html", title="t", runs=runs)
    assert (
        "Fréchet distance in 1 step, while training, by cost"
        in (tmp_path / "page.html").read_text()
    )


def in_browser(path, page, script, *flags):
    """The value of a JavaScript expression on the page in Chromium, and the errors there."""
    probe = (
        '<script>addEventListener("load", () => setTimeout(() => {'
        f"const found = (() => {{{script}}})();"
        'const pre = document.createElement("pre"); pre.id = "found";'
        "pre.textContent = btoa(encodeURIComponent(JSON.stringify(found)));"
        "document.body.append(pre);}, 500))</script></body>"
    )
    (path / "probed.html").write_text(page.replace("</body>", probe))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={path}/profile", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, *flags, f"file://{path}/probed.html"], capture_output=True, timeout=120
    )
    (found,) = re.findall(rb'<pre id="found">(.*?)</pre>', done.stdout)
    problems = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    return json.loads(unquote(base64.b64decode(found).decode())), problems


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@needs_chromium
@pytest.mark.parametrize("scheme", [0, 1])  # dark, light
def test_a_browser_loads_every_picture_without_a_complaint(tmp_path, six, scheme):
    script = """
        const plot = document.querySelector("picture");
        return {
          widths: [...document.images].map(image => image.naturalWidth),
          dark: plot.lastChild.currentSrc === plot.firstChild.srcset,
          paper: getComputedStyle(document.body).backgroundColor,
        };"""
    flag = f"--blink-settings=preferredColorScheme={scheme}"
    found, problems = in_browser(tmp_path, six, script, flag)
    assert problems == []
    assert len(found["widths"]) == 11 and min(found["widths"]) > 100
    assert found["dark"] == (scheme == 0)
    assert found["paper"] == ("rgb(22, 22, 22)" if scheme == 0 else "rgb(255, 255, 255)")


@needs_chromium
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_body_never_scrolls_sideways(tmp_path, six, width):
    # A frame, since a window is never narrower than 500 pixels.
    (tmp_path / "page.html").write_text(six)
    frame = f'<body><iframe src="page.html" style="width: {width}px; height: 900px; border: 0">'
    script = """
        const {document, innerWidth} = frames[0];
        document.querySelectorAll("details").forEach(details => details.open = true);
        const root = document.documentElement, table = document.querySelector(".sortable");
        const box = table.parentElement, first = table.querySelector("tbody th");
        box.scrollLeft = 200;
        return {
          width: innerWidth, scroll: root.scrollWidth, client: root.clientWidth,
          scrolls: box.scrollLeft > 0,
          first: first.getBoundingClientRect().left - box.getBoundingClientRect().left,
          smallest: Math.min(...[...document.querySelectorAll("main *")].map(
            element => parseFloat(getComputedStyle(element).fontSize))),
        };"""
    page, files = f"{frame}</iframe></body>", "--allow-file-access-from-files"
    found, problems = in_browser(tmp_path, page, script, files)
    assert problems == []
    assert found["width"] == width
    assert found["scroll"] == found["client"] <= width
    assert found["scrolls"] == (width < 1400)
    assert found["first"] == 0
    assert found["smallest"] >= 12


@needs_chromium
def test_a_click_on_a_heading_sorts_the_rows(tmp_path):
    methods = {"Ect": 0.5, "cd": 10.0, "sim": 2.0}
    folders = [evaluated_run(tmp_path / m, m, frechet=f, steps=(1,)) for m, f in methods.items()]
    folders.insert(1, evaluated_run(tmp_path / "new", "unmeasured", steps=(16,), measurement={}))
    script = """
        const column = index => document.querySelectorAll(".sortable thead th")[index];
        const click = index => {
          const button = column(index).querySelector("button");
          button.focus();
          if (document.activeElement !== button) return "no focus";
          button.click();
          const rows = [...document.querySelectorAll(".sortable tbody tr")];
          const names = rows.map(row => row.cells[0].innerText);
          return [column(index).getAttribute("aria-sort"), ...names];
        };
        return {
          frechet: click(2), again: click(2), agreement: click(3),
          steps: click(1), method: click(0),
          sorted: document.querySelectorAll("[aria-sort]").length,
          last: document.querySelector(".sortable").lastElementChild.innerText.split("\\t")[0],
        };"""
    found, problems = in_browser(tmp_path, write(tmp_path, *folders), script)
    assert problems == []
    assert found == {
        "frechet": ["ascending", "Ect", "sim", "cd", "unmeasured"],
        "again": ["descending", "cd", "sim", "Ect", "unmeasured"],
        "agreement": ["descending", "Ect", "sim", "cd", "unmeasured"],
        "steps": ["ascending", "Ect", "cd", "sim", "unmeasured"],
        "method": ["ascending", "cd", "Ect", "sim", "unmeasured"],
        "sorted": 1,
        "last": "real images",
    }
