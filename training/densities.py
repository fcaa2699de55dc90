"""The density of a run: the network for it, a sampler in a file as its teacher, its identity."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fewstep.densities.density import Density
from fewstep.diffusion.path import default_fields
from fewstep.models.network import Network
from fewstep.models.user_sampler import UserSampler, read_sampler
from fewstep.training.storage.identity import Identity

# Entry of the identity of what a run reads: the digest of the file of its density.
DENSITY = "density_sha256"


def check_density_network(config: ConfigDict, network: Network, density: Density | None) -> None:
    """Raises ValueError for a network that does not suit a density.

    It reads one that is not there, is odd without a density that is even, or is too narrow.

    A perceptron narrower than a point, without networks of coordinates, cannot represent the
    identity, so the samples of a student would lose variance.
    """
    if network.score_input and density is None:
        raise ValueError(
            "model.score_input=True needs a density, data.name=density:NAME, not "
            f"data.name={config.data.name}"
        )
    if config.model.get("odd") and not (density and is_even(density)):
        raise ValueError(
            f"model.odd=True needs a density with rho(-x) = rho(x), and {config.data.name} is "
            "none; leave it out"
        )
    width = config.model.get("width")
    own = config.model.get("coordinate_width")
    if density and not config.debug and width and not own and width < density.dim:
        raise ValueError(
            f"model.width={width} is below the {density.dim} dimensions of {config.data.name}: "
            "samples would collapse; use model.coordinate_width=8, a small network for each "
            f"coordinate, or model.width={density.dim} or more"
        )


def is_even(density: Density) -> bool:
    """Whether rho(-x) = rho(x) at a few draws of the prior, to rounding."""
    x = density.scale * jax.random.normal(jax.random.key(0), (8, density.dim))
    values, mirrored = density.log_densities(x), density.log_densities(-x)
    return bool(jnp.allclose(values, mirrored, rtol=1e-3, atol=1e-2))


def sampler_reader(config: ConfigDict, density: Density | None) -> Callable[[], UserSampler]:
    """What reads the sampler in the file `config.teacher`, once. Raises ValueError."""
    if density is None:
        raise ValueError(
            f"teacher={config.teacher} is a sampler in a file, which needs a density, "
            f"data.name=density:NAME, not data.name={config.data.name}"
        )
    given = {name: value for name, value in config.path.items() if value is not None}
    fields = default_fields(config.path.name) | given
    return cache(partial(read_sampler, config.teacher, fields, density.dim, density.scale))


def density_identity(density: Density | None) -> dict[str, str] | None:
    """What identifies a density that a file defines; None for others."""
    return {DENSITY: density.digest} if density is not None and density.digest else None


def check_same_density(teacher: str, run: Identity, density: Density | None) -> None:
    """Raises ValueError if the file of the density is another one than the teacher's."""
    recorded, now = (run.data or {}).get(DENSITY), density.digest if density else ""
    if recorded and now and recorded != now:
        raise ValueError(
            f"teacher={teacher} was trained on another density than the file "
            f"{density.name} has now (SHA-256 {recorded[:12]} there, "
            f"{now[:12]} here); put back the file, or train the teacher again"
        )
