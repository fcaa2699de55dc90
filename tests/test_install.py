"""A wheel installs one name, `fewstep`, and its command, beside other packages called as our rooms.

Builds without a network: hatchling is in requirements-dev.txt.
"""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fewstep
from fewstep.training.storage import code_version
from tests.training.runs import save_run

ROOT = Path(__file__).parent.parent
OTHERS = ("data", "eval", "models", "configs", "main", "files")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
FIVE_LINES = """
import sys
import fewstep
run = fewstep.load("tiny")
images = run.sample(labels=[3] * 4, steps=1, seed=0)
assert images.shape == (4, 8, 8, 1) and images.dtype == "uint8"

import configs, data, eval, files, main, models
assert {module.OWNER for module in (configs, data, eval, files, main, models)} == {"another"}
assert fewstep.__file__.startswith(sys.argv[1]), fewstep.__file__
assert fewstep.config("configs/digits.py:edm").values.method == "edm"
from fewstep.eval.report.page import results_page
from fewstep.training.storage.code_version import code_version
print(code_version()["sources"], code_version()["package"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this code."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*PIP, *build], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel and packages of others, on a path of its own."""
    folder = tmp_path_factory.mktemp("installed")
    for name in OTHERS:
        (folder / f"{name}.py").write_text('OWNER = "another"\n')
    install = ["install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    return folder


def variables(folder):
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def test_a_wheel_has_every_file_of_the_program_below_one_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"fewstep", f"fewstep-{fewstep.__version__}.dist-info"}
    ours = {f"fewstep/{name}" for name in code_version.source_files()}
    ours = ours - {"fewstep/fewstep.py"} | {"fewstep/__init__.py"}
    rooms = (path for room in code_version.ROOMS for path in (ROOT / room).rglob("*.*"))
    others = {p.relative_to(ROOT) for p in rooms if p.suffix not in (".py", ".pyc") and p.is_file()}
    assert {name for name in names if "dist-info" not in name} == ours | {
        f"fewstep/{path.as_posix()}" for path in others
    }
    assert {path.name for path in others} >= {"page.css", "table.js"}
    assert {path.suffix for path in others} >= {".npz"}  # classifiers that all machines share


def test_it_requires_what_requirements_txt_lists(wheel):
    folder = zipfile.Path(wheel, f"fewstep-{fewstep.__version__}.dist-info/")
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line.partition("#")[0].strip().replace("_", "-") for line in lines} - {""}
    found = {Requirement(each) for each in metadata.PathDistribution(folder).requires}
    assert found == {Requirement(line.lower()) for line in listed}


def test_the_build_names_every_room_and_module():
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    hook = hook["targets"]["wheel"]["hooks"]["custom"]
    assert hook["rooms"] == sorted(code_version.ROOMS)
    assert hook["modules"] == sorted({*code_version.MODULES} - {"fewstep"})


def test_the_installed_package_runs_beside_others(installed, tmp_path):
    save_run(tmp_path / "tiny", "shortcut", **{"evaluate.batch_size": 8})
    script = [sys.executable, "-c", FIVE_LINES, str(installed)]
    done = subprocess.run(
        script, cwd=tmp_path, env=variables(installed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The hash of the code is that of the clone: a run may go on in either.
    assert done.stdout.split() == [code_version.code_version()["sources"], fewstep.__version__]


def test_the_command_is_installed(installed, tmp_path):
    command = [sys.executable, installed / "bin" / "fewstep", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables(installed), capture_output=True, text=True
    )
    assert done.returncode == 0 and "Modes (--mode=MODE" in done.stdout, done.stderr
    assert "    fewstep --mode=sample --workdir=runs/digits" in done.stdout


def test_an_editable_installation_maps_one_name_and_copies_nothing(tmp_path):
    install = ["install", "--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    subprocess.run([*PIP, *install, "--editable", str(ROOT)], check=True)
    copied = {path.name for path in tmp_path.glob("*")} - {"bin", "__pycache__"}
    about = f"fewstep-{fewstep.__version__}.dist-info"
    assert copied == {about, "_editable_impl_fewstep.pth", "_editable_impl_fewstep.py"}
    code = "import _editable_impl_fewstep, fewstep.files; print(fewstep.files.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=variables(tmp_path), capture_output=True
    )
    assert Path(done.stdout.decode().strip()) == ROOT / "files.py", done.stderr
