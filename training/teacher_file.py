"""A teacher that is a sampler in a file of the user's (models/user_sampler.py), and no run.

It has no record: path, prediction and network are the student's own. It is known by the digest of
its file. Methods that read only what a teacher predicts can learn from it, by its pairs too.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.user_sampler import UserSampler, check_sampler, sampler_params
from fewstep.objectives.base import Params
from fewstep.objectives.denoising import solver_sampler
from fewstep.samplers.ode import heun
from fewstep.training.experiment import Experiment
from fewstep.training.sharding import replicated_sharding
from fewstep.training.sources import SAMPLED_TEACHER, TEACHER, teacher_sources

# Objectives that differentiate a teacher in its parameters, or train a copy of them.
READ_PARAMETERS = ("parameter_matching", "progressive", "tract", "guidance_distillation")


def read_teacher_file(config: ConfigDict, experiment: Experiment) -> UserSampler:
    """The sampler in the file `config.teacher`. Raises ValueError if it cannot teach the method."""
    objective = experiment.objective
    copied = not (objective.frozen or teacher_sources(objective))
    if copied or config.objective.name in READ_PARAMETERS or config.teacher_network:
        raise ValueError(
            f"teacher={config.teacher} is a sampler in a file, which has no parameters, and "
            f"{config.method} reads those of its teacher; use consistency_sampler, cd or direct"
        )
    model = experiment.model
    return check_sampler(model.sampler(), model.path, model.density.dim)


def file_identity(sampler: UserSampler) -> dict[str, Any]:
    """What a student records of it, as of a run (`teacher_identity`)."""
    return {"run": "", "step": 0, "network": sampler.form, "fingerprint": sampler.digest}


def file_params(sampler: UserSampler, experiment: Experiment, mesh: Mesh) -> dict[str, Params]:
    """What stands for its parameters, by the names of the teacher on the devices of the mesh."""
    everywhere = replicated_sharding(mesh)
    params = jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, everywhere, lambda i: leaf[i]),
        jax.tree.map(np.asarray, sampler_params(sampler.digest)),
    )
    named = {TEACHER: params} if experiment.objective.frozen else {}
    return named | ({SAMPLED_TEACHER: params} if teacher_sources(experiment.objective) else {})


def sampled_experiment(experiment: Experiment) -> Experiment:
    """The experiment whose sampler is that of the file: its ODE, by Heun's steps."""
    sample = solver_sampler(experiment.model, heun(), uniform_spacing(experiment.model.path))
    return experiment._replace(objective=experiment.objective._replace(sample=sample))
