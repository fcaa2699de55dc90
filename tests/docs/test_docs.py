"""README.md and docs/ name only what exists: files, tests, fields, flags, methods, commands.

Their prose wraps at one width.
"""

import ast
import importlib.util
import pydoc
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import main
from fewstep.configs.fields import field_names
from fewstep.configs.methods import METHODS
from fewstep.training.storage.identity import CHANGEABLE
from tests.test_imports import FLOORS

# Of absl, which loads a config file as Python 3.12 will not.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
EACH_PAGE = pytest.mark.parametrize(
    "page", [ROOT / "README.md", *DOCS], ids=lambda page: str(page.relative_to(ROOT))
)
IGNORED = (ROOT / ".gitignore").read_text().split()
FOLDERS = [
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and path.name[0] not in "._" and f"{path.name}/" not in IGNORED
]
CONFIGS = [p for p in sorted((ROOT / "configs").glob("*.py")) if "def get_config" in p.read_text()]

FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Anything below a folder of ours, and any file with a suffix that runs and data sets do not have.
PATH = re.compile(
    rf"(?<![\w./~-])(?:(?:{'|'.join(FOLDERS)})/[\w./*-]*\w|[\w./-]+\.(?:py|md|sh|sbatch)\b)"
)
FLAG = re.compile(r"(?<![\w-])--([a-z](?:[\w.-]*\w)?)")
COMMAND = re.compile(r"(?:python|make|pip) .*")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
SIGNATURE = re.compile(r"([A-Z]\w+)\(([\w, ]+?)(?:, \.\.\.)?\)")
# Names that end in a number, such as `frechet_1`, are made while a run goes on.
WORD = re.compile(r"[A-Za-z]\w*_\w*[A-Za-z]|[A-Z][a-z]\w+")
# These stand for any name in a path, as in objectives/METHOD.py.
PLACEHOLDER = re.compile(r"\b(?:FILE|METHOD|MODE|DATASET)\b")
# Suffixes of files that a run or a user has: `run.json` is no attribute of a module.
DATA = {"json", "jsonl", "npz", "npy", "png", "csv", "pth", "html", "zip", "txt"}
# Of sbatch, docker and tensorboard.
OTHER_FLAGS = {"nodes", "gpus-per-node", "ntasks-per-node", "array", "build-arg", "logdir"}
OPTIONAL = {"torch"}  # need not be installed, so its names cannot be looked up

WIDTH = 100  # columns of prose
# What no line break may divide: a link or image on its own line, and words and code spans without
# a space between them. Either may be an item of a list.
UNBREAKABLE = re.compile(r" *(?:[-*+] +|\d+[.)] +)?(?:!?\[[^\]]*\]\(\S+\)|(?:`[^`]+`|[^\s`])+)")


# --- What a page says


def prose(page):
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def names(page):
    """What a page has in backticks; of `FIELD=VALUE` the field."""
    return {span.split("=")[0] for span in SPAN.findall(prose(page))}


def dotted_names(page):
    """The dotted names of a page; `Player(network, every)` has `Player.network`, `Player.every`."""
    found = {name for name in names(page) if DOTTED.fullmatch(name) and not PATH.fullmatch(name)}
    signatures = filter(None, map(SIGNATURE.fullmatch, names(page)))
    return found | {f"{s[1]}.{argument}" for s in signatures for argument in s[2].split(", ")}


def wide_lines(page):
    """The lines of prose that are wider than WIDTH and could be wrapped."""
    lines = [line for line in prose(page).splitlines() if not re.match(r" *\||#", line)]
    return [line for line in lines if len(line) > WIDTH and not UNBREAKABLE.fullmatch(line)]


def commands(page):
    """The commands of a page as lists of words, continued lines joined."""
    blocks = "".join(FENCE.findall(page.read_text())).replace("\\\n", " ")
    lines = [*blocks.splitlines(), *SPAN.findall(prose(page))]
    return [shlex.split(line) for line in lines if COMMAND.fullmatch(line)]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- What there is


@cache
def files():
    """All files and folders of the repository."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in [*ROOT.iterdir(), *inside] if "__pycache__" not in path.parts]


@cache
def code():
    """The text of every file of code, by path; of tests that of their environment alone."""
    kinds = {".py", ".sh", ".sbatch", ".yaml"}
    found = [path for path in files() if path.suffix in kinds]
    found = [path for path in found if "tests" not in path.parts or path.name == "conftest.py"]
    return {path: path.read_text() for path in found}


@cache
def words():
    """The words of the code, and the names of all files."""
    return {*re.findall(r"\w+", " ".join(code().values()))} | {file.stem for file in files()}


@cache
def classes():
    """The fields and methods of every class of the code, by its name."""
    found = {}
    for path, text in code().items():
        trees = ast.walk(ast.parse(text)) if path.suffix == ".py" else ()
        for node in trees:
            if isinstance(node, ast.ClassDef):
                annotated = {each.target.id for each in node.body if hasattr(each, "annotation")}
                methods = {each.name for each in node.body if hasattr(each, "name")}
                found.setdefault(node.name, set()).update(annotated | methods)
    return found


@cache
def fields():
    """The fields of all configs by dotted name, and the groups that they are in."""
    found = set()
    for path in CONFIGS:
        get_config = pydoc.locate(f"fewstep.configs.{path.stem}.get_config")
        for method in METHODS:
            found.update(field_names(get_config(method).to_dict()))
    return found | {name[:i] for name in found for i, letter in enumerate(name) if letter == "."}


def is_file(path, page):
    """Whether a path leads somewhere from the root or from the page; a name may be anywhere."""
    pattern = PLACEHOLDER.sub("*", path)
    if "/" not in path:
        return any(file.match(pattern) for file in files())
    return any(any(folder.glob(pattern)) for folder in (ROOT, page.parent))


def is_flag(name):
    """Whether main.py, or a program of bench/ or examples/, has a flag."""
    if name.startswith("config."):
        return name.removeprefix("config.") in fields()
    programs = [text for path, text in code().items() if path.parent.name in ("bench", "examples")]
    return name in {*flags.FLAGS, "help"} or any(defines(text, name) for text in programs)


def defines(text, flag):
    """Whether a program defines a flag, by argparse, absl, or examples/picture.py."""
    if "picture.main(" in text and (flag == "out" or re.search(rf"\b{flag}=picture.Count", text)):
        return True
    return re.search(rf'"(?:--)?{flag}"', text) is not None


def is_name(name):
    """Whether a dotted name is a field, a file of data, or in a class or module."""
    first, *rest = name.split(".")
    if name in fields() or rest[-1] in DATA or first in OPTIONAL:
        return True
    if first in classes():
        return rest[0] in classes()[first]
    return any(pydoc.locate(each) is not None for each in (name, f"fewstep.{name}"))


# --- Names


@EACH_PAGE
def test_files_exist(page):
    paths = {*PATH.findall(LINK.sub("]", page.read_text()))}
    assert {path for path in paths if not is_file(path, page)} == set()


@EACH_PAGE
def test_tests_exist(page):
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@EACH_PAGE
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@EACH_PAGE
def test_flags_exist(page):
    used = {*FLAG.findall(prose(page))} - OTHER_FLAGS
    assert {flag for flag in used if not is_flag(flag)} == set()


@EACH_PAGE
def test_dotted_names_exist(page):
    assert {name for name in dotted_names(page) if not is_name(name)} == set()


@EACH_PAGE
def test_words_of_code_occur_in_the_code(page):
    used = {name.lstrip("$") for name in names(page)}
    assert {name for name in used if WORD.fullmatch(name)} - words() == set()


@EACH_PAGE
def test_configs_have_their_methods(page):
    known = {path.name for path in CONFIGS} | {"FILE.py", "DATASET.py"}
    for file, method in re.findall(r"configs/(\w+\.py):(\w+)", page.read_text()):
        assert file in known and method in {*METHODS, "METHOD"}, f"{file}:{method}"


def test_the_code_names_pages_that_exist():
    named = {page for text in code().values() for page in re.findall(r"(?<!/)docs/\w+\.md", text)}
    assert {page for page in named if not (ROOT / page).exists()} == set()


def test_backticks_are_single():
    texts = {path: path.read_text() for path in files() if path.suffix in (".md", ".py")}
    double = re.compile(r"(?<!`)`{2}(?!`)")
    assert [path for path, text in texts.items() if double.search(text)] == []


# --- Layout


@EACH_PAGE
def test_prose_wraps_at_one_width(page):
    assert wide_lines(page) == []


# --- Commands


@EACH_PAGE
def test_commands_are_accepted(page, monkeypatch):
    for program, *arguments in commands(page):
        if program == "make":
            assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(), arguments[0]
        elif arguments[0] == "main.py":
            check_request([each for each in arguments if each != "--help"], monkeypatch)
        elif arguments[0] == "-m":
            check_module(arguments[1], arguments[2:])
        else:
            texts = [each for each in arguments if each.endswith(".txt")]
            assert all((ROOT / text).exists() for text in texts), texts


def check_request(arguments, monkeypatch):
    """Fails unless main.py takes the arguments, and the mode knows the methods."""
    monkeypatch.setattr("sys.argv", arguments)  # where fields of a config are looked for
    with flagsaver.flagsaver():
        main.parse_flags(arguments)
        assert {*(main.read_request().methods or ())} <= {*METHODS}, arguments


def check_module(name, arguments):
    """Fails unless there is a module of this name; one of ours must have the flags."""
    spec = importlib.util.find_spec(name)
    assert spec, name
    text = code().get(Path(spec.origin))
    for flag in FLAG.findall(" ".join(arguments)) if text else ():
        assert defines(text, flag), f"{name} --{flag}"


# --- Lists


def test_the_index_has_every_page():
    linked = {*LINK.findall((ROOT / "docs/README.md").read_text())}
    assert {page.name for page in DOCS} - {"README.md"} <= linked


def test_the_tree_of_design_has_every_folder():
    tree = FENCE.search((ROOT / "docs/design.md").read_text())[1]
    assert {*re.findall(r"^(\w+)/ ", tree, re.MULTILINE)} == {*FOLDERS} - {"docs"}


def test_the_table_of_methods_has_every_method():
    first_cells = re.findall(r"^\| (`[^|]+)", (ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    assert {name for cell in first_cells for name in SPAN.findall(cell)} == {*METHODS}


def test_the_fields_that_may_change_are_listed():
    said = (ROOT / "docs/running.md").read_text().split("make it another run may change:\n\n")[1]
    assert {*SPAN.findall(said.split("\n\n")[0])} == {name.rstrip(".") for name in CHANGEABLE}


def test_every_folder_of_the_package_has_pages():
    (rooms,) = re.findall(r"^ROOMS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rooms.split() == sorted(
        {room.split("/")[0] for room in FLOORS} & {*FOLDERS} | {"configs"}
    )
