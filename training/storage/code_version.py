"""The version of this code: its commit, its release, and a hash of its files."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fewstep import __version__

ROOT = Path(__file__).parents[2]
# Folders of the program under ROOT; other folders there are the user's.
ROOMS = (
    "configs",
    "data",
    "densities",
    "diffusion",
    "eval",
    "latents",
    "models",
    "modes",
    "objectives",
    "samplers",
    "training",
    "weights",
)
MODULES = ("main", "library", "fewstep", "buckets", "files", "messages", "parts", "progress")


def code_version() -> dict[str, str]:
    """commit ("" outside a git checkout), package (`fewstep.__version__`) and sources.

    sources: a hash of the names and contents of all the program's Python files, so that it shows
    uncommitted changes too.
    """
    total = hashlib.sha256()
    for name, path in sorted(source_files().items()):
        total.update(f"{name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return {"commit": git_commit(), "package": __version__, "sources": total.hexdigest()[:12]}


def source_files() -> dict[str, Path]:
    """The Python files of the program by their names in a clone, which an installation shares."""
    inside = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    beside = (ROOT / f"{module}.py" for module in MODULES)
    files = {path.relative_to(ROOT).as_posix(): path for path in (*beside, *inside)}
    if (ROOT / "__init__.py").exists():  # what an installation makes of fewstep.py
        files["fewstep.py"] = ROOT / "__init__.py"
    return {name: path for name, path in files.items() if path.exists()}


def git_commit() -> str:
    """The commit of this code's git checkout, "" if there is none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--show-toplevel", "--short=12", "HEAD"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    top, revision = printed.splitlines()
    # A copy of the code inside another project's checkout does not have that project's commit.
    return revision if Path(top).resolve() == ROOT.resolve() else ""


def describe_code(version: Mapping[str, str]) -> str:
    """A version in words."""
    commit, package = version.get("commit"), version.get("package")
    names = [f"commit {commit}"] if commit else []
    names += [f"fewstep {package}"] if package else []
    return ", ".join([*names, f"sources {version.get('sources') or 'unknown'}"])
