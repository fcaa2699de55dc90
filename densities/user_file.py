"""A user's own density: a Python file with `log_density`, and `dim`.

    dim = 2                                   # number of coordinates; needed
    def log_density(x): ...                   # of one point [dim], in JAX; needed
    scale = 3.0                               # typical size of a coordinate; 1 by default
    log_z = 0.0                               # if known
    def sample(rng, count): ...               # exact samples [count, dim], if there are any
    modes = Modes(assign, weight)             # of fewstep.densities.density, if known

The file is code: it runs only if the user has named it (user_code.py).
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from fewstep.densities.density import Density, Modes, check_density
from fewstep.densities.user_code import Code, check_dimension, run_file

# What a file may define besides dim and log_density, which it must.
OPTIONAL = ("scale", "sample", "log_z", "modes", "symmetries")
DRAWS = 3  # of `sample`, to check it


def user_density(path: Path) -> Density:
    """The density that a Python file defines. Raises ValueError and FileNotFoundError."""
    field = f"data.name=density:{path}"
    return _density(path, run_file(path, field, "the density", ("dim", "log_density")))


@cache
def _density(path: Path, code: Code) -> Density:
    module = code.module
    dim = check_dimension(path, module.dim)
    given = {name: getattr(module, name) for name in OPTIONAL if hasattr(module, name)}
    given["log_z"] = check_log_z(path, given.get("log_z"))
    check_modes(path, given.get("modes"))
    density = Density(path.stem, dim, module.log_density, digest=code.digest, **given)
    check_sample(path, check_density(density))
    return density


def check_log_z(path: Path, log_z: Any) -> float | None:
    """The `log_z` of a file as a float; None for None. Raises ValueError unless it is finite."""
    if log_z is None:
        return None
    try:
        good = math.isfinite(log_z)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{path}: log_z={log_z!r} must be a finite number")
    return float(log_z)


def check_modes(path: Path, modes: Any) -> None:
    """Raises ValueError unless the `modes` of a file are None or a `Modes`."""
    if modes is not None and not isinstance(modes, Modes):
        raise ValueError(f"{path}: modes={modes!r} must be a Modes of fewstep.densities.density")


def check_sample(path: Path, density: Density) -> None:
    """Raises ValueError unless the `sample` of a file is None or gives finite points."""
    if density.sample is None:
        return
    call, wanted = f"sample(rng, {DRAWS})", (DRAWS, density.dim)
    try:
        x = density.sample(np.random.default_rng(0), DRAWS)
    except Exception as error:
        raise ValueError(f"{path}: {call} fails: {type(error).__name__}: {error}") from error
    must = f"{path}: {call} must return finite floats {list(wanted)}"
    if not isinstance(x, np.ndarray | Array):
        raise ValueError(f"{must} as an array, not a {type(x).__name__}")
    if x.shape != wanted or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{must}, not {x.dtype} {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError(f"{must}, not {x[~np.isfinite(x)][0]}")
