"""A user's own density: a Python file with `log_density`, and `dim`.

    dim = 2                                   # number of coordinates; needed
    def log_density(x): ...                   # of one point [dim], in JAX; needed
    scale = 3.0                               # typical size of a coordinate; 1 by default
    log_z = 0.0                               # if known
    def sample(rng, count): ...               # exact samples [count, dim], if there are any

The file is code. It runs only if the user has named its path: a record of a run is no permission.
"""

import importlib.util
from functools import cache
from pathlib import Path

from fewstep.densities.density import Density, check_density

# What a file may define besides dim and log_density, which it must.
OPTIONAL = ("scale", "sample", "log_z", "modes", "symmetries")
_permitted: set[Path] = set()


def permit(path: str | Path) -> None:
    """Allow this process to run a file, because its user has named it."""
    _permitted.add(Path(path).resolve())


def user_density(path: Path) -> Density:
    """The density that a Python file defines. Raises ValueError and FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"data.name=density:{path}: there is no file {path}")
    if path.resolve() not in _permitted:
        raise ValueError(
            f"the density of this run is code in {path}, which runs only if you name it: add "
            f"--config.data.name=density:{path}"
        )
    return _load(path.resolve())


@cache
def _load(path: Path) -> Density:
    spec = importlib.util.spec_from_file_location(f"density_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    missing = [name for name in ("dim", "log_density") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"{path} does not define {' and '.join(missing)}")
    if not isinstance(module.dim, int) or module.dim < 1:
        raise ValueError(f"{path}: dim={module.dim!r} must be a whole number of 1 or more")
    given = {name: getattr(module, name) for name in OPTIONAL if hasattr(module, name)}
    return check_density(Density(path.stem, module.dim, module.log_density, **given))
