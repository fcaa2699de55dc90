"""One place decides whether a progress bar is drawn."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# It prints lines by tqdm.write, which draws nothing.
LINES = "processes.py"


def test_no_other_file_draws_a_bar():
    files = [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]
    assert ROOT / "training" / "cluster" / LINES in files
    for path in files:
        if path.relative_to(ROOT).parts[0] != "tests" and path.name not in ("progress.py", LINES):
            drawn = re.search(r"\b(tqdm|trange)\(|import .*\btrange\b", path.read_text())
            assert not drawn, f"{path.relative_to(ROOT)} draws a bar: use progress.progress"
