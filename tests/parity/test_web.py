"""An exported page in headless Chromium: pictures are ours within one grey level.

Needs Chromium, jax2onnx, and .venv/page, in which `make page` types `npm install onnxruntime-web`.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fewstep.modes.draws import choose_pairs
from fewstep.modes.export import export
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.sampling import checked_sampler, finished_samples
from tests import browser
from tests.training.runs import save_run

pytest.importorskip("jax2onnx", reason="jax2onnx is in requirements-export.txt")

RUNTIME = Path(sys.prefix) / "page"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(browser.executable() is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not RUNTIME.is_dir(), reason="`make page` installs onnxruntime-web"),
]

WIDTHS = (360, 768, 1280)
CHOOSE = """(() => {
  for (const [id, value] of Object.entries(%s)) document.getElementById(id).value = value;
  document.getElementById("steps").dispatchEvent(new Event("change", { bubbles: true }));
})()"""
PIXELS = """[...document.querySelectorAll("canvas")].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return [...context.getImageData(0, 0, copy.width, copy.height).data];
})"""
RIGHT = """Math.max(...[...document.querySelectorAll("label:not([hidden]), button, canvas")]
  .map((each) => each.getBoundingClientRect().right))"""
STATUS = "document.getElementById('status').textContent"


def wait(page, text, place=STATUS):
    """Wait until the page says that it has drawn what it was asked for."""
    end = time.monotonic() + 60
    while text not in page.run(place):
        assert time.monotonic() < end and not page.problems, (page.run(STATUS), page.problems)
        time.sleep(0.05)


def drawn(page, count, steps, **controls):
    """Set the controls of the page; returns its pictures, [N, H, W, 3]."""
    page.run(CHOOSE % {"count": str(count), "steps": str(steps), **controls})
    wait(page, f"{count} pictures in {steps} sampling step")
    pixels = np.array(page.run(PIXELS), np.uint8)
    side = int((pixels.shape[1] // 4) ** 0.5)
    return pixels.reshape(count, side, side, 4)[..., :3]


def ours(folder, steps, guidance, seeds, label):
    """The pictures of --mode=sample, [N, H, W, C]."""
    run = load_run(Request(workdir=folder))
    classes = run.experiment.num_classes
    labels = [] if label is None else [label]
    draw = choose_pairs(seeds, labels, classes)
    return np.concatenate([*finished_samples(run, checked_sampler(run, steps, guidance), draw, 8)])


@pytest.mark.parametrize(
    ("method", "fields", "cases"),
    [
        ("ect", {}, [(1, 1.0, 0, None), (2, 1.0, 7, 3)]),
        (
            "flow_matching",
            {"data.channels": 3, "data.image_size": 16},
            [(4, 1.0, 2_000_000_000, None), (2, 2.0, 5, 9)],
        ),
    ],
)
def test_pictures_are_ours_within_one_grey_level(tmp_path, method, fields, cases):
    folder, out = Path(save_run(tmp_path / "run", method, **fields)), tmp_path / "page"
    export(Request(workdir=folder, out=out, format="web", runtime=RUNTIME))
    with browser.opened(out) as page:
        wait(page, "16 pictures in 1 sampling step")
        for steps, guidance, seed, label in cases:
            controls = {"seed": str(seed), "class": str(-1 if label is None else label)}
            asked = controls | {"guidance": f"{guidance:g}"}
            found = drawn(page, 4, steps, **asked)
            expected = ours(folder, steps, guidance, range(seed, seed + 4), label)
            assert expected.std() > 20.0
            difference = np.abs(found.astype(int) - expected.astype(int)).max()
            print(f"{method}, {steps} steps: largest difference {difference}")
            assert difference <= 1
        assert not page.problems
        assert all(address.startswith(page.address) for address in page.requests)


def test_it_fits_three_widths_and_both_color_schemes(tmp_path):
    folder, out = Path(save_run(tmp_path / "run", "shortcut")), tmp_path / "page"
    request = Request(workdir=folder, out=out, format="web", runtime=RUNTIME)
    export(request._replace(fields={"evaluate.steps": (1,)}))
    with browser.opened(out) as page:
        wait(page, "16 pictures")
        papers = set()
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                page.look(width, scheme, tmp_path / f"{width}-{scheme}.png")
                assert page.run("document.documentElement.scrollWidth") <= width
                assert page.run(RIGHT) <= width
                papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert papers == {"rgb(255, 255, 255)", "rgb(22, 22, 22)"}
        page.run("document.querySelector('button').click()")
        wait(page, "seed 31", "document.querySelector('#pictures').textContent")
        wait(page, "16 pictures")
        assert page.run("document.getElementById('seed').value") == "16"
        assert not page.problems
