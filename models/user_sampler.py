"""A sampler that a user brings as a teacher: a Python file with its velocity or its control.

    dim = 2                            # number of coordinates; needed
    def velocity(x, t): ...            # dx/dt of the probability-flow ODE at x: [B, dim], t: [B]
    def control(x, t): ...             # or: u of dX = (beta/2 X + s sqrt(beta) u) dt + ...
    path = {"name": "vp_ddpm", "beta_min": 0.1, "beta_max": 10.0}     # if it is to be compared

Points are those of the density. t is the time of the student's path, from the data to the noise, at
which the prior is N(0, s^2 I), s the scale of the density. The optimal control is
u = s sqrt(beta) grad log p_t (Berner et al. 2024), so in the units of networks the score is
u / sqrt(beta).

The file is code: it runs only if the user has named it (densities/user_code.py), and not before
something is computed with the teacher. It has no parameters that training could read. Where a
loss reads those of its teacher, it gets `sampler_params`, by which `Model.predict` knows it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.user_code import check_dimension, run_file
from fewstep.diffusion.path import Path as NoisePath
from fewstep.diffusion.path import align
from fewstep.diffusion.prediction import KINDS, Endpoints, Kind, coefficients
from fewstep.models.network import Params

SUFFIX = ".py"
# The only entry of the parameters that stand for a sampler in a file.
PARAMETER = "sampler_file"
DRAWS = 16


class UserSampler(NamedTuple):
    """A sampler in a file. digest: SHA-256 of the file.

    function: (x: [B, D], t: [B]) -> what `form` says, in points of the density. scale: of these.
    """

    path: Path
    form: str
    function: Callable[[Array, Array], Array]
    scale: float
    digest: str

    def predict(self, kind: Kind, path: NoisePath, y: Array, t: Array) -> Array:
        """The prediction of a network of that kind at y = x / scale."""
        c = coefficients(path, t, y)
        given = self.function(self.scale * y, t)
        if self.form == "velocity":
            ends = KINDS["velocity"].decode(given / self.scale, y, c)
        else:
            beta = align(-2.0 * path.alpha_rate(t) / path.alpha(t), y)
            eps = -c.sigma * given / jnp.sqrt(beta)
            ends = Endpoints((y - c.sigma * eps) / c.alpha, eps)
        return kind.encode(ends, y, c)


FORMS = ("velocity", "control")


def is_sampler_file(teacher: str) -> bool:
    """Whether `config.teacher` names a file and no run."""
    return teacher.endswith(SUFFIX)


def sampler_params(digest: str) -> Params:
    """What stands for the parameters of a sampler: 24 bits of its digest in each number."""
    parts = [int(digest[i : i + 6], 16) for i in range(0, len(digest) // 6 * 6, 6)]
    return {PARAMETER: np.asarray(parts, np.float32)}


def stands_for_sampler(params: Params) -> bool:
    """Whether parameters are those of `sampler_params`."""
    return isinstance(params, Mapping) and params.keys() == {PARAMETER}


def read_sampler(teacher: str, fields: Mapping[str, Any], dim: int, scale: float) -> UserSampler:
    """The `UserSampler` in the file `config.teacher`.

    fields: of the student's config.path. dim, scale: of the student's density. Raises ValueError
    and FileNotFoundError: for a file that is not named, does not define what it must, or is of
    another dimension or path.
    """
    file = Path(teacher).expanduser()
    code = run_file(file, f"teacher={teacher}", "the teacher", ("dim",))
    forms = [form for form in FORMS if hasattr(code.module, form)]
    if len(forms) != 1:
        raise ValueError(f"{file} must define velocity or control, and one of them only")
    if check_dimension(file, code.module.dim) != dim:
        raise ValueError(f"{file}: dim={code.module.dim}, and the density has {dim} dimensions")
    own = getattr(code.module, "path", {})
    wrong = [f"{name}={value!r}" for name, value in own.items() if fields.get(name) != value]
    if wrong:
        flags = " ".join(f"--config.path.{each}" for each in wrong)
        raise ValueError(f"{file} is a sampler on another path than the run's: set {flags}")
    return UserSampler(file, forms[0], getattr(code.module, forms[0]), scale, code.digest)


def check_sampler(sampler: UserSampler, path: NoisePath, dim: int) -> UserSampler:
    """The sampler, if its function gives finite numbers [B, D] at draws from the prior.

    Computes, so it is called outside of programs. Raises ValueError.
    """
    x = sampler.scale * jax.random.normal(jax.random.key(0), (DRAWS, dim))
    try:
        values = np.asarray(sampler.function(x, jnp.full(DRAWS, path.t_max)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{sampler.form} of {sampler.path} cannot be called: {error}") from error
    if values.shape != x.shape:
        raise ValueError(
            f"{sampler.form} of {sampler.path} must return {list(x.shape)} for points of that "
            f"shape, not {list(values.shape)}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{sampler.form} of {sampler.path} is not finite at draws from the prior")
    return sampler
