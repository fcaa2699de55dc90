"""Progress bars on a terminal; none in a log file, where their lines would pile up."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, silent: bool = False, **options: Any
) -> tqdm:
    """A tqdm bar over `items`, drawn on standard error if that is a terminal.

    silent: never draw it. options: further arguments of tqdm.
    """
    hidden = silent or not is_terminal()
    return tqdm(items, file=sys.stderr, dynamic_ncols=True, disable=hidden, **options)


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def note(line: str) -> None:
    """Print a line on standard error at once, without breaking progress bars."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
