"""--mode=evaluate: measure a checkpoint of a run."""

from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.maps import measure_maps
from fewstep.modes.mode import (
    CHECKPOINT,
    CONFIG,
    PLACES,
    WORKDIR,
    Flag,
    Mode,
    parse_integer,
    parse_integers,
    parse_one_or_several,
    parse_path,
    parse_text,
)
from fewstep.modes.recorded_run import check_effect
from fewstep.modes.request import Request
from fewstep.training.cost.choice import field_value

# Fields of the measured samples, and those of them that --maps reads. --num_samples sets both
# numbers of samples.
MEASURED = ("evaluate.", "data.label_shares")
SINGLE = ("evaluate.steps", "evaluate.guidance_scale")
MAPPED = (*SINGLE, "evaluate.num_samples", "evaluate.batch_size")
BESIDE = "evaluate.final_samples"  # is set by --num_samples too


def evaluate(request: Request) -> None:
    """Measure the samples of a run, or with --maps what map from noise to data it has learned.

    Raises ValueError for flags of --maps without it, and for fields that would change nothing.
    """
    for name in ("teacher", "beside"):
        if getattr(request, name) and not request.maps:
            raise ValueError(f"--{name} is for the maps of a run; add --maps")
    check_effect(request, "evaluate", EVALUATE)
    if request.maps:
        check_maps(request)
    (measure_maps if request.maps else evaluate_run)(request)


def check_maps(request: Request) -> None:
    """Raises ValueError for fields given with --maps that would change nothing."""
    given = {name: field_value(request.config, name) for name in request.given or ()}
    for name, value in {**given, **request.fields}.items():
        if name.startswith(MEASURED) and name not in (*MAPPED, BESIDE):
            raise ValueError(
                f"{name} would change nothing: --maps measures no samples, and reads only "
                f"{', '.join(MAPPED)}; leave it out"
            )
        if name in SINGLE and isinstance(value, list | tuple) and len(value) > 1:
            raise ValueError(f"{name}={tuple(value)} names several, and --maps reads one; name one")


EVALUATE = Mode(
    evaluate,
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
            "Guidance scale, 1 is no guidance; or several, such as 1,2,4.",
            parse_one_or_several,
            ("evaluate.guidance_scale",),
        ),
        "maps": Flag(
            "Measure the map from noise to data beside a teacher's trajectories, not samples.",
            switch=True,
        ),
        "teacher": Flag("With --maps: WORKDIR[@STEP] of a denoiser; default: the run's teacher."),
        "beside": Flag("With --maps: WORKDIR[@STEP] of a run whose samples to compare by noise."),
        "out": Flag("Folder for the results; default: WORKDIR/eval, or WORKDIR/maps.", parse_path),
        **CONFIG,
    },
    together=True,
    replaces=("evaluate", "data.label_shares", *PLACES),
)
