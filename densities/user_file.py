"""A user's own density: a Python file with `log_density`, and `dim`.

    dim = 2                                   # number of coordinates; needed
    def log_density(x): ...                   # of one point [dim], in JAX; needed
    scale = 3.0                               # typical size of a coordinate; 1 by default
    log_z = 0.0                               # if known
    def sample(rng, count): ...               # exact samples [count, dim], if there are any

The file is code: it runs only if the user has named it (user_code.py).
"""

from functools import cache
from pathlib import Path

from fewstep.densities.density import Density, check_density
from fewstep.densities.user_code import Code, check_dimension, run_file

# What a file may define besides dim and log_density, which it must.
OPTIONAL = ("scale", "sample", "log_z", "modes", "symmetries")


def user_density(path: Path) -> Density:
    """The density that a Python file defines. Raises ValueError and FileNotFoundError."""
    field = f"data.name=density:{path}"
    return _density(path, run_file(path, field, "the density", ("dim", "log_density")))


@cache
def _density(path: Path, code: Code) -> Density:
    module = code.module
    dim = check_dimension(path, module.dim)
    given = {name: getattr(module, name) for name in OPTIONAL if hasattr(module, name)}
    return check_density(Density(path.stem, dim, module.log_density, digest=code.digest, **given))
