"""Progress bars on a terminal or in a notebook; none in a log file, where lines would pile up."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, silent: bool = False, **options: Any
) -> tqdm:
    """A tqdm bar over `items`, drawn on standard error if that is a terminal, or in a notebook.

    silent: never draw it. options: further arguments of tqdm.
    """
    hidden = silent or not shows_bars()
    draw = tqdm
    if in_notebook() and not hidden:
        from tqdm.auto import tqdm as draw
    return draw(items, file=sys.stderr, dynamic_ncols=True, disable=hidden, **options)


def shows_bars() -> bool:
    """Whether somebody may watch a bar."""
    return is_terminal() or in_notebook()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def note(line: str) -> None:
    """Print a line on standard error at once, without breaking progress bars."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
