"""The averages of a run, and which network samples."""

from ml_collections import ConfigDict

from fewstep.objectives.base import Follower
from fewstep.objectives.followers import constant_ema, power_ema, warmed_ema
from fewstep.training.construct import look_up


def averages(ema: ConfigDict, source: str) -> dict[str, Follower]:
    """One follower of `source` for each of ema.decays and ema.power_stds."""
    update = warmed_ema if ema.warmup else constant_ema
    constant = {f"ema_{decay:g}": update(decay) for decay in ema.decays}
    power = {f"power_{std:g}": power_ema(std) for std in ema.power_stds}
    return {
        name: Follower(source, follow, restarts=True) for name, follow in (constant | power).items()
    }


def sampling_network(ema: ConfigDict, generator: str) -> str:
    """Name of the network that samples: ema.sample_with, else the first average, else `generator`.

    Raises ValueError for a network that the run does not have.
    """
    if ema.sample_with:
        check_sampling_network(ema, generator, ema.sample_with, "ema.sample_with")
    return ema.sample_with or next(iter(averages(ema, generator)), generator)


def check_sampling_network(ema: ConfigDict, generator: str, name: str, asked_by: str) -> None:
    """Raises ValueError, which names the flag or field `asked_by`, for an unknown network."""
    look_up({**averages(ema, generator), generator: None}, name, asked_by)
