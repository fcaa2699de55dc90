"""The command line of an example that writes one picture: --out, and a flag for each count."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging


class Count(NamedTuple):
    """A flag for a whole number of at least `least`."""

    default: int
    meaning: str
    least: int = 1


def main(example: Callable[..., None], **counts: Count) -> None:
    """Run example(out, **counts) with the values of the flags; --out is the path of a .png file.

    A path that does not end in .png is an error before any work, with exit code 2.
    """
    # Defined here because flag names are global to a process.
    picture = flags.DEFINE_string("out", None, "a .png file for the picture", required=True)
    given = {
        name: flags.DEFINE_integer(name, count.default, count.meaning, lower_bound=count.least)
        for name, count in counts.items()
    }

    def run(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.ERROR)
        out = Path(picture.value)
        if out.suffix != ".png":
            print(f"error: --out={out} must end in .png", file=sys.stderr)
            sys.exit(2)
        example(out, **{name: flag.value for name, flag in given.items()})

    app.run(run)
