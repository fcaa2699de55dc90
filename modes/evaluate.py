"""--mode=evaluate: measure a checkpoint of a run."""

from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.mode import CHECKPOINT, CONFIG, WORKDIR, Flag, Mode, parse_path

EVALUATE = Mode(
    evaluate_run,
    "Measure a checkpoint of a run.",
    {
        **CONFIG,
        **WORKDIR,
        **CHECKPOINT,
        "out": Flag("Folder for the results; default: WORKDIR/eval.", parse_path),
    },
    together=True,
)
