"""--mode=evaluate: measure a checkpoint of a run."""

from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.maps import measure_maps
from fewstep.modes.mistakes import no_effect
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
from fewstep.modes.recorded_run import check_method
from fewstep.modes.request import Request, require_workdir
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.storage.workdir import load_config

# Fields of --config that say how a process works, not what a run is.
OF_PROCESS = ("compilation_cache",)


def evaluate(request: Request) -> None:
    """Measure the samples of a run, or with --maps what map from noise to data it has learned.

    Raises ValueError for flags of --maps without it, and for fields that would change nothing.
    """
    for name in ("teacher", "beside"):
        if getattr(request, name) and not request.maps:
            raise ValueError(f"--{name} is for the maps of a run; add --maps")
    check_effect(request)
    (measure_maps if request.maps else evaluate_run)(request)


def check_effect(request: Request) -> None:
    """Raises ValueError for a field given beside --config that an evaluation leaves as in the run.

    A field with the value of the run is none, nor is one of this process. Raises ValueError for a
    config of another method too, which may lack fields of the run's.
    """
    if request.config is None or not request.given:
        return
    recorded = load_config(require_workdir(request), request.checkpoint)
    check_method(recorded, request)
    own, asked = (flatten_fields(as_dict(config)) for config in (recorded, request.config))
    for name in request.given:
        is_read = name in OF_PROCESS or EVALUATE.may_replace(name)
        if not is_read and own.get(name) != asked.get(name):
            raise ValueError(no_effect(name, "evaluate", EVALUATE))


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
