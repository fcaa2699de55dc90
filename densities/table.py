"""Densities by the name that follows `data.name=density:`.

gmm9, gmm25, gmm40    mixtures of Gaussians       rings, funnel      in 2 and in 10 dimensions
wells-D-M-DELTA       double wells                manywell           32 dimensions, 2^16 modes
dw2, dw100, mw54, mw52  short for wells-...       phi4, phi4-SIDE-KAPPA-LAMBDA   lattice fields
cancer                logistic regression         FILE.csv           Cox process of points
image                 a photograph            FILE.py            a user's own (user_file.py)
RUN                   posterior of a decoder that the run has trained, for one image
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fewstep.densities.density import Density
from fewstep.densities.lattice import phi4
from fewstep.densities.mixtures import grid_mixture, random_mixture
from fewstep.densities.picture import photograph
from fewstep.densities.posteriors import cancer, read_points
from fewstep.densities.shapes import funnel, rings
from fewstep.densities.user_file import user_density
from fewstep.densities.wells import double_wells, many_well
from fewstep.messages import unknown_choice

KIND = "density"
DENSITIES: dict[str, Callable[[str], Density]] = {
    "gmm9": lambda name: grid_mixture(name, 3),
    "gmm25": lambda name: grid_mixture(name, 5),
    "gmm40": random_mixture,
    "rings": rings,
    "funnel": funnel,
    "dw2": lambda name: double_wells(name, 2, 1, 2.0),
    "dw100": lambda name: double_wells(name, 100, 1, 2.0),
    "mw54": lambda name: double_wells(name, 5, 5, 4.0),
    "mw52": lambda name: double_wells(name, 50, 5, 2.0),
    "manywell": many_well,
    "phi4": phi4,
    "cancer": cancer,
    "image": photograph,
}
NUMBER = r"(\d+(?:\.\d+)?)"
# Families of densities whose names have their numbers.
FAMILIES: dict[str, Callable[..., Density]] = {
    rf"wells-(\d+)-(\d+)-{NUMBER}": lambda name, d, m, delta: double_wells(
        name, int(d), int(m), float(delta)
    ),
    rf"phi4-(\d+)-{NUMBER}-{NUMBER}": lambda name, side, kappa, coupling: phi4(
        name, int(side), float(kappa), float(coupling)
    ),
}
# Makes the density of a run's folder. Only rooms above know runs, so one of them adds it.
_of_run: list[Callable[[str], Density]] = []
FORMS = (*DENSITIES, "wells-D-M-DELTA", "phi4-SIDE-KAPPA-LAMBDA", "FILE.csv", "FILE.py", "RUN")


def find_density(name: str) -> Density:
    """The density of a name. Raises ValueError for an unknown one, and as its file does."""
    if name.endswith(".py"):
        return user_density(Path(name))
    if name.endswith(".csv"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"data.name=density:{name}: there is no file {name}")
        return read_points(Path(name), name)
    if is_place(name) and _of_run:
        return _of_run[-1](name)
    return _built(name)


def is_place(name: str) -> bool:
    """Whether a name is that of a file or a folder; a folder named as a density needs a `/`."""
    if name in DENSITIES or any(re.fullmatch(form, name) for form in FAMILIES):
        return False
    return name.endswith((".py", ".csv")) or "/" in name or Path(name.partition("@")[0]).is_dir()


def read_runs_by(reader: Callable[[str], Density]) -> None:
    """Have densities of runs read by a function of the name, RUN or RUN@STEP."""
    _of_run.append(reader)


@cache
def _built(name: str) -> Density:
    if name in DENSITIES:
        return DENSITIES[name](name)
    for form, build in FAMILIES.items():
        if found := re.fullmatch(form, name):
            return build(name, *found.groups())
    forms = [f"{KIND}:{form}" for form in FORMS]
    raise ValueError(unknown_choice("data.name", f"{KIND}:{name}", forms))


def density_of(data_name: str) -> Density | None:
    """The density that `data.name` names, None if it names a data set. Raises ValueError."""
    kind, colon, name = data_name.partition(":")
    return find_density(name) if kind == KIND and colon else None
