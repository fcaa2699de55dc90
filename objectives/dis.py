"""Denoising diffusion samplers in continuous time (DIS; Berner, Richter & Ullrich 2024).

The generative SDE reverses a variance-preserving one. In noising time t, backwards from t_max,

    dX = (beta/2 X + beta score) dt + sqrt(beta) dW = beta (f - X/2) dt + sqrt(beta) dW

is discretised by Euler and Maruyama, in `path_steps` steps (samplers/controlled.py has the kernels
and the weights, objectives/path_sampling.py the losses). With f = 0 it stays at N(0, I).

Where the paper, its code and this file differ:

* Weights are ratios of Gaussian kernels, exactly unbiased for any number of steps. The code sums
  Girsanov's formula, which is 25% too large in log Z at 16 steps on a Gaussian.
* The control is f, not u = sqrt(beta) score, and the network predicts it as `tilt`.
* The prior is N(0, scale^2 I), with the scale of the density. The code has N(0, I), cut at a
  quantile; it drops weights above 1e8 and widens its clipping during training.
* The gate of the score is learned for each dimension and is the same at the first step.
"""

from typing import Annotated

from fewstep.diffusion.spacing import SPACINGS, Spacing
from fewstep.models.model import Model
from fewstep.objectives.base import Objective
from fewstep.objectives.needs import needs
from fewstep.objectives.path_sampling import PATH_LOSSES, PathLoss, path_sampler
from fewstep.parts import Entry, Part
from fewstep.samplers import SOLVERS
from fewstep.samplers.controlled import euler_kernel
from fewstep.samplers.ode import Solver


@needs()
def dis(
    model: Model,
    *,
    path_loss: Annotated[PathLoss, Entry(PATH_LOSSES)] = PATH_LOSSES["log_variance"],
    path_steps: int = 100,
    solver: Annotated[Solver | None, Part(SOLVERS)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
) -> Objective:
    """The DIS objective on a density; reads no data. Arguments as for `path_sampler`.

    path_loss: log_variance by default, as in the paper's best runs; or kl.
    """
    return path_sampler(model, euler_kernel, path_loss, path_steps, spacing, solver)
