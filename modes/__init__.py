"""What the command line can do: one file per mode, each with a function of a `Request`."""

from collections.abc import Callable

from fewstep.modes.checkpoints import checkpoints
from fewstep.modes.compare import compare
from fewstep.modes.describe import describe
from fewstep.modes.doctor import doctor
from fewstep.modes.evaluate import evaluate
from fewstep.modes.plan import plan
from fewstep.modes.prepare import prepare
from fewstep.modes.replay import replay
from fewstep.modes.report import report
from fewstep.modes.request import Request
from fewstep.modes.sample import sample
from fewstep.modes.train import train

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
