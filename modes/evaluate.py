"""--mode=evaluate: measure a checkpoint of a run."""

from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.mode import (
    CHECKPOINT,
    CONFIG,
    PLACES,
    WORKDIR,
    Flag,
    Mode,
    parse_integer,
    parse_integers,
    parse_number,
    parse_path,
    parse_text,
)

EVALUATE = Mode(
    evaluate_run,
    "Measure a checkpoint of a run.",
    {
        **WORKDIR,
        **CHECKPOINT,
        "steps": Flag(
            "Numbers of sampling steps, such as 1,4; default, as for all that follows: the run's.",
            parse_integers,
            ("evaluate.steps",),
        ),
        "num_samples": Flag(
            "Number of samples to measure, also after the last training step.",
            parse_integer,
            ("evaluate.num_samples", "evaluate.final_samples"),
        ),
        "features": Flag(
            "Features that compare samples: classifier, pixels, inception, dinov2, points, none.",
            parse_text,
            ("evaluate.features",),
        ),
        "guidance": Flag(
            "Guidance scale; 1 is no guidance.", parse_number, ("evaluate.guidance_scale",)
        ),
        "out": Flag("Folder for the results; default: WORKDIR/eval.", parse_path),
        **CONFIG,
    },
    together=True,
    replaces=("evaluate", "data.label_shares", *PLACES),
)
