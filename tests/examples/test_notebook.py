"""The notebook and the snippets of docs/python.md run as written, from an empty folder."""

import json
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from fewstep.models.dit import SIZES, DiTSize

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "examples" / "digits.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The names after the notebook has run in an empty folder, and the folder."""
    matplotlib.use("Agg")  # draws in memory
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(SIZES, "nano", DiTSize(32, 1, 2))  # compiles sooner
        return run(cells(NOTEBOOK)), folder


def cells(notebook):
    """The code of a notebook, cell by cell."""
    read = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in read if cell["cell_type"] == "code"]


def snippets(page):
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run(blocks):
    """The names after the blocks have run."""
    names = {}
    for block in blocks:
        exec(block, names)
    return names


@pytest.mark.some_days(3)
def test_the_notebook_runs(notebook):
    names, folder = notebook
    assert (names["run"].step, {*names["samples"]}) == (20, {1, 4})
    assert all(images.shape == (10, 8, 8, 1) for images in names["samples"].values())
    assert all(np.isfinite(result["metrics"]["frechet"]) for result in names["results"].values())
    assert not any(cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"])
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_the_snippets_of_the_page_run(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "nano", DiTSize(32, 1, 2))
    _, folder = notebook  # of the same config, so `train` goes on from its end
    shutil.copytree(folder / "runs" / "notebook", "runs/digits")
    names = run(snippets(ROOT / "docs" / "python.md"))
    assert names["images"].shape == (16, 8, 8, 1) and names["run"].step == 20
    np.testing.assert_allclose(names["again"], names["x_t"], rtol=1e-3, atol=1e-4)
    assert names["gradient"].shape == names["x_t"].shape and names["x_0"].shape == (4, 8, 8, 1)
    assert names["result"]["metric"] == "fd-pixels-100"
