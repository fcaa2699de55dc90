"""Training methods, by the value of `objective.name`. Each has a file of its own."""

from collections.abc import Callable

from fewstep.objectives.autoencoder import autoencoder
from fewstep.objectives.base import Objective
from fewstep.objectives.boot import boot
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.objectives.consistency_training import consistency_training
from fewstep.objectives.consistency_trajectory import consistency_trajectory
from fewstep.objectives.consistency_tuning import consistency_tuning
from fewstep.objectives.continuous_consistency import continuous_distillation, continuous_training
from fewstep.objectives.dds import dds
from fewstep.objectives.denoising import denoising
from fewstep.objectives.direct import direct
from fewstep.objectives.dis import dis
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.dsno import dsno
from fewstep.objectives.genie import genie
from fewstep.objectives.guidance_distillation import guidance_distillation
from fewstep.objectives.improved_mean_flow import improved_mean_flow
from fewstep.objectives.live_reflow import live_reflow
from fewstep.objectives.mean_flow import mean_flow
from fewstep.objectives.moment_matching import moment_matching
from fewstep.objectives.parameter_matching import parameter_matching
from fewstep.objectives.progressive import progressive
from fewstep.objectives.reflow import reflow
from fewstep.objectives.scds import scds
from fewstep.objectives.shortcut import shortcut
from fewstep.objectives.tract import tract

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": denoising,
    "shortcut": shortcut,
    "consistency_distillation": consistency_distillation,
    "consistency_training": consistency_training,
    "consistency_tuning": consistency_tuning,
    "continuous_training": continuous_training,
    "continuous_distillation": continuous_distillation,
    "distribution_matching": distribution_matching,
    "progressive": progressive,
    "guidance_distillation": guidance_distillation,
    "genie": genie,
    "direct": direct,
    "reflow": reflow,
    "live_reflow": live_reflow,
    "mean_flow": mean_flow,
    "improved_mean_flow": improved_mean_flow,
    "tract": tract,
    "consistency_trajectory": consistency_trajectory,
    "boot": boot,
    "dsno": dsno,
    "moment_matching": moment_matching,
    "parameter_matching": parameter_matching,
    "autoencoder": autoencoder,
    "dis": dis,
    "dds": dds,
    "scds": scds,
}
