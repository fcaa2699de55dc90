"""How progress is shown: bars on a terminal, and none in a log file, where their lines pile up."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, silent: bool = False, **how: Any) -> tqdm:
    """A tqdm bar over `items` on standard error, if that is a terminal; else none is drawn.

    silent: whether to draw none there either. how: further arguments of tqdm.
    """
    hidden = silent or not on_terminal()
    return tqdm(items, file=sys.stderr, dynamic_ncols=True, disable=hidden, **how)


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def note(line: str) -> None:
    """Print a line on standard error at once, clear of progress bars."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
