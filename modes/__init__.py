"""The modes of the command line. Each file declares one mode and the flags that it uses."""

from fewstep.modes.checkpoints import CHECKPOINTS
from fewstep.modes.compare import COMPARE
from fewstep.modes.describe import DESCRIBE
from fewstep.modes.doctor import DOCTOR
from fewstep.modes.evaluate import EVALUATE
from fewstep.modes.export import EXPORT
from fewstep.modes.import_weights import IMPORT
from fewstep.modes.measure import MEASURE
from fewstep.modes.mode import Mode
from fewstep.modes.plan import PLAN
from fewstep.modes.prepare import PREPARE
from fewstep.modes.replay import REPLAY
from fewstep.modes.report import REPORT
from fewstep.modes.sample import SAMPLE
from fewstep.modes.train import TRAIN

MODES: dict[str, Mode] = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "sample": SAMPLE,
    "measure": MEASURE,
    "prepare": PREPARE,
    "import": IMPORT,
    "export": EXPORT,
    "describe": DESCRIBE,
    "plan": PLAN,
    "report": REPORT,
    "compare": COMPARE,
    "checkpoints": CHECKPOINTS,
    "replay": REPLAY,
    "doctor": DOCTOR,
}
