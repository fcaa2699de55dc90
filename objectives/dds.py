"""Denoising diffusion samplers in discrete time (DDS; Vargas, Grathwohl & Doucet 2023).

    y_{k+1} = sqrt(1 - l_k) y_k + l_k f(y_k, k) + sqrt(l_k) eps_k,  y_0 ~ N(0, I)
    log w = log rho(y_K) - log N(y_K; 0, I) - sum_k (l_k |f_k|^2 / 2 + sqrt(l_k) eps_k . f_k)

The reference chain, with f = 0, is stationary at N(0, I), so this weight is the ratio of kernels of
samplers/controlled.py. l_k = 1 - (alpha_t / alpha_s)^2, the paper's alpha_k, is the exact noising
of the path between two times of the grid.

Where the paper, its code and this file differ:

* The paper's exponential integrator moves by 2 lambda_k f with lambda_k = 1 - sqrt(1 - alpha_k),
  and pays 2 lambda_k^2 / alpha_k |f|^2. This file has l_k f and l_k |f|^2 / 2, as the Euler steps
  of its code. The drifts differ by about l_k / 4 of their size. Both have exact weights.
* The schedule of l is that of path and spacing; the paper's is a squared cosine.
* kl is differentiated with all terms. The code drops the term eps . f, whose mean is zero, or
  detaches its network.
* The score is not detached inside the network, so the gradient of kl is complete.
* The prior is N(0, scale^2 I), with the scale of the density; the paper tunes it for each target.
"""

from typing import Annotated

from fewstep.diffusion.spacing import SPACINGS, Spacing
from fewstep.models.model import Model
from fewstep.objectives.base import Objective
from fewstep.objectives.needs import needs
from fewstep.objectives.path_sampling import PATH_LOSSES, PathLoss, path_sampler
from fewstep.parts import Entry, Part
from fewstep.samplers import SOLVERS
from fewstep.samplers.controlled import exponential_kernel
from fewstep.samplers.ode import Solver


@needs()
def dds(
    model: Model,
    *,
    path_loss: Annotated[PathLoss, Entry(PATH_LOSSES)] = PATH_LOSSES["kl"],
    path_steps: int = 128,
    solver: Annotated[Solver | None, Part(SOLVERS)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
) -> Objective:
    """The DDS objective on a density; reads no data. Arguments as for `path_sampler`.

    path_loss: kl by default, as in the paper; or log_variance.
    """
    return path_sampler(model, exponential_kernel, path_loss, path_steps, spacing, solver)
