"""What the command line can do: one file per mode, each with a function of a `Request`."""

from collections.abc import Callable

from modes.checkpoints import checkpoints
from modes.compare import compare
from modes.describe import describe
from modes.doctor import doctor
from modes.evaluate import evaluate
from modes.plan import plan
from modes.prepare import prepare
from modes.replay import replay
from modes.report import report
from modes.request import Request
from modes.sample import sample
from modes.train import train

MODES: dict[str, Callable[[Request], None]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "prepare": prepare,
    "describe": describe,
    "plan": plan,
    "report": report,
    "compare": compare,
    "checkpoints": checkpoints,
    "replay": replay,
    "doctor": doctor,
}
