"""--mode=train: train from scratch, or continue from the newest checkpoint of the workdir."""

from fewstep.modes.mode import CONFIG, FROM, PROFILE, WORKDIR, Mode
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.run_page import write_run_page
from fewstep.modes.train_run import train_run


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
        **PROFILE,
    },
    together=True,
    trains=True,
)
