"""--mode=train: train from scratch, or continue from the newest checkpoint of the workdir."""

import re

from fewstep.modes.mode import CONFIG, FROM, WORKDIR, Flag, Mode
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.run_page import write_run_page
from fewstep.modes.train_run import train_run
from fewstep.training.profile import Window


def parse_window(flag: str, given: str) -> Window:
    """Parse START:STOP as training steps. Raises ValueError."""
    ends = re.fullmatch(r"(\d+):(\d+)", given)
    if not ends:
        raise ValueError(f"--{flag}={given} must be START:STOP, two training steps such as 100:103")
    return Window(*map(int, ends.groups()))


def train(request: Request) -> None:
    """Train, then write the page of the run into its folder."""
    train_run(request)
    write_run_page(require_workdir(request))


TRAIN = Mode(
    train,
    "Train, or continue from the newest checkpoint; evaluate and save on the way.",
    {
        **CONFIG,
        **WORKDIR,
        **FROM,
        "profile": Flag("START:STOP, the training steps to trace, such as 100:103.", parse_window),
    },
    together=True,
    trains=True,
)
