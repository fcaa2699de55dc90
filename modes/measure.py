"""--mode=measure: measure samples that any program has made."""

from pathlib import Path

from fewstep.eval.given import read_samples
from fewstep.eval.measure_given import describe, measure_given
from fewstep.eval.reference import SPLITS
from fewstep.eval.report.results import save_results
from fewstep.files import check_writable
from fewstep.modes.draws import sibling_path
from fewstep.modes.mode import Flag, Mode, parse_path, parse_text
from fewstep.modes.request import Request, expand_home
from fewstep.training.sharding import make_mesh

FEATURES = "evaluate.features"


def measure(request: Request) -> None:
    """Print all metrics of --samples against --reference; write them as JSON to --out.

    Raises ValueError or OSError that says what is wrong with the samples or the reference.
    """
    for flag, value, example in (
        ("samples", request.samples, "samples"),
        ("reference", request.reference, "digits"),
    ):
        if not value:
            raise ValueError(f"--{flag} is missing; name one, as in --{flag}={example}")
    if request.out is not None and request.out.suffix != ".json":
        raise ValueError(f"--out={request.out} must end in .json")
    place = request.samples
    check_writable((request.out or place).absolute().parent, "choose a file by --out=FILE.json")
    result = measure_given(
        read_samples(place),
        expand_home(request.reference),
        make_mesh(),
        split=request.split,
        features=request.fields.get(FEATURES, ""),
        weights=str(request.weights or ""),
    )
    print(describe(result), flush=True)
    out = request.out or default_out(place, result["id"])
    save_results(out, result)
    print(f"written to {out}")


def default_out(samples: Path, name: str) -> Path:
    """A file beside the samples, named after them and the protocol."""
    beside = sibling_path(samples, "")
    return beside.with_name(f"{beside.name}-{name}.json")


MEASURE = Mode(
    measure,
    "Measure samples that any program has made.",
    {
        "samples": Flag(
            "Folder or .zip of pictures, or an .npz or .npy of uint8 [N, H, W, C].", parse_path
        ),
        "reference": Flag(
            "Real images: a data set such as digits or folder:PATH, a folder, or an .npz of "
            "statistics or images."
        ),
        "split": Flag(f"Split of the reference: {', '.join(SPLITS)}; default: {SPLITS[0]}."),
        "features": Flag(
            "Features that compare samples: classifier, pixels, inception, dinov2; default: "
            "classifier for digits and fashion_mnist, else inception.",
            parse_text,
            (FEATURES,),
        ),
        "weights": Flag("File of weights of the features.", parse_path),
        "out": Flag("A .json file for the result; default: beside the samples.", parse_path),
    },
)
