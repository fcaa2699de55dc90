"""Every field of an objective and of its parts, its default, unit and meaning.

None stands for the default of the function that takes the field.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def time_sampler(name: str = "uniform") -> ConfigDict:
    """How t is drawn."""
    return ConfigDict(
        {
            "name": name,  # uniform, logit_normal, log_normal, equal_karras
            "mean": placeholder(float),  # logit_normal, log_normal
            "std": placeholder(float),  # logit_normal, log_normal
            "power": placeholder(float),  # equal_karras
            "lowest": placeholder(float),  # equal_karras: fraction of the way from data to noise
            "highest": placeholder(float),  # equal_karras: likewise
        }
    )


def log_normal(mean: float, std: float) -> ConfigDict:
    """Log-normal noise levels."""
    fields = time_sampler()
    fields.update(name="log_normal", mean=mean, std=std)
    return fields


def spacing(name: str = "uniform") -> ConfigDict:
    """How a path is divided into steps: uniform in t, or karras(power) in noise levels."""
    return ConfigDict({"name": name, "power": placeholder(float)})


def solver(name: str = "euler") -> ConfigDict:
    """How a denoiser is sampled."""
    return ConfigDict(
        {
            "name": name,  # euler, ddim, heun, dpm_solver_2m, ancestral, churned_heun
            "variance": placeholder(str),  # ancestral: small or large
            "churn": placeholder(float),  # churned_heun: noise added, over all steps
            "churn_min": placeholder(float),  # churned_heun: from this noise level
            "churn_max": placeholder(float),  # churned_heun: to this noise level
            "noise": placeholder(float),  # churned_heun: factor of the added noise
        }
    )


def denoising() -> ConfigDict:
    """objectives/denoising.py: flow matching, EDM, DDPM, by `prediction` and `path`."""
    return ConfigDict(
        {
            "name": "denoising",
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # probability of training a row without its label
            "guidance_scale": 1.0,  # when sampling; form A, 1 is none
            "solver": solver(),
            "spacing": spacing(),  # of the sampler's steps
        }
    )


def distance(name: str = "squared_l2", c: float | None = None) -> ConfigDict:
    """How two points are compared."""
    fields = ConfigDict(
        {
            "name": name,  # squared_l2, l1, pseudo_huber, pseudo_huber_elementwise, norm, huber,
            #   log_cosh, exponential, cauchy
            "c": placeholder(float),  # pseudo_huber: 0.00054 sqrt(D) if None, 0 is the norm; scale
            #   of pseudo_huber_elementwise, huber, exponential, cauchy
            "power": placeholder(float),  # norm: || a - b ||^power
        }
    )
    fields.c = c
    return fields


def shortcut() -> ConfigDict:
    """objectives/shortcut.py; needs model.second_time = "step_size"."""
    return ConfigDict(
        {
            "name": "shortcut",
            "max_steps": 128,  # M: step sizes are 1/M, 2/M, 4/M, ..., 1
            "bootstrap_fraction": 0.25,  # share of the batch; paper 1/4, official code 1/8
            "target_decay": 0.999,  # EMA of the bootstrap target; 0 is the network itself
            "target_warmup": True,  # decay at most (1 + step) / (10 + step)
            "time_sampler": time_sampler(),  # of the flow-matching rows
            "label_dropout": 0.1,  # of the flow-matching rows
            "guidance_scale": 1.0,  # trained in at the finest step; form A, 1 is none
            "distance": distance(),  # of the network and its target; the paper's is squared L2
        }
    )


def curriculum(name: str = "constant") -> ConfigDict:
    """How many points the time grid has as training goes on."""
    return ConfigDict(
        {
            "name": name,  # constant, square_root, doubling
            "points": placeholder(int),  # constant
            "first": placeholder(int),  # square_root: points at first; doubling: cells
            "last": placeholder(
                int
            ),  # square_root, doubling: cells, one less than points, at the end
            "total_steps": placeholder(int),  # square_root, doubling: None is `steps`
        }
    )


def consistency_distillation() -> ConfigDict:
    """objectives/consistency_distillation.py; needs `teacher`."""
    return ConfigDict(
        {
            "name": "consistency_distillation",
            "curriculum": curriculum(),
            "spacing": spacing("karras"),  # of the grid, and of the sampler's steps
            "skip": 1,  # how many points of the grid lie from one time to the other
            "teacher_solver": "heun",  # one step of: euler, ddim, heun
            "distance": distance(),
            "weighting": "uniform",  # uniform, inverse_gap
            "target_decay": 0.95,  # EMA of the target; 0 is the network itself
            "guidance_scale": 1.0,  # of the teacher; with guidance_range the sampler's default
            "guidance_range": (),  # (low, high) of the scale told to the network; needs
            #   model.guidance_input
            "sample_times": (),  # times after the first, for one step more than their number
        }
    )


def consistency_training() -> ConfigDict:
    """objectives/consistency_training.py"""
    return ConfigDict(
        {
            "name": "consistency_training",
            "curriculum": curriculum("square_root"),
            "spacing": spacing("karras"),  # of the grid, and of the sampler's steps
            "time_sampler": time_sampler(""),  # the law whose cells are drawn; "" draws all alike
            "distance": distance(),
            "weighting": "uniform",  # uniform, inverse_gap
            "initial_decay": 0.9,  # mu_0 of the target's EMA; 0 is the network itself
            "sample_times": (),  # times after the first, for one step more than their number
        }
    )


def consistency_tuning() -> ConfigDict:
    """objectives/consistency_tuning.py; starts from `teacher` if there is one."""
    return ConfigDict(
        {
            "name": "consistency_tuning",
            "total_steps": placeholder(int),  # over which the gap shrinks; None is `steps`
            "stages": 8,  # equal parts of them, the gap shrinking by q after each
            "q": 2.0,
            "k": 8.0,
            "b": 1.0,
            "time_sampler": log_normal(-1.1, 2.0),
            "distance": distance("pseudo_huber", 0.0),  # the norm
            "weighting": "inverse_gap",  # uniform, inverse_gap
            "spacing": spacing("karras"),  # of the sampler's steps
            "sample_times": (),  # times after the first, for one step more than their number
        }
    )


def continuous_training() -> ConfigDict:
    """objectives/continuous_consistency.py, sCT; needs path.name = "trigflow"."""
    return ConfigDict(
        {
            "name": "continuous_training",
            "time_sampler": log_normal(-1.0, 1.4),
            "tangent_warmup": 10_000,  # steps over which the tangent takes effect; None is `steps`
            "tangent_scale": 0.1,  # c of g / (||g|| + c)
            "adaptive_weight": True,  # learn the weight of each t; needs model.loss_weight
            "spacing": spacing(),  # of the sampler's steps
            "sample_times": (),  # times after the first, for one step more than their number
        }
    )


def continuous_distillation() -> ConfigDict:
    """objectives/continuous_consistency.py, sCD; needs `teacher` and path.name = "trigflow"."""
    fields = continuous_training()
    fields.update(name="continuous_distillation", guidance_scale=1.0)  # of the teacher
    return fields


def progressive() -> ConfigDict:
    """objectives/progressive.py; needs `teacher`, and starts from it."""
    return ConfigDict(
        {
            "name": "progressive",
            "total_steps": placeholder(int),  # of training, in equal stages; None is `steps`
            "max_steps": 64,  # sampling steps of the first stage, halved after each; a power of two
            "weighting": "truncated_snr",  # of the error of x_0: truncated_snr, snr_plus_one
            "spacing": spacing(),  # of the steps
            "guidance_scale": 1.0,  # of the first teacher, which later ones inherit; form A
        }
    )


def divergence(name: str = "score_implicit_matching") -> ConfigDict:
    """What a one-step generator minimises (objectives/divergences.py)."""
    return ConfigDict(
        {
            # score_implicit_matching, score_identity, integral_kl, score_distillation,
            # noise_free_score_distillation
            "name": name,
            # score_implicit_matching: of fake score and teacher, denoised; "" is pseudo_huber
            "distance": distance(""),
            "alpha": placeholder(float),  # score_identity: 1.2 if None
            # noise_free_score_distillation: sigma / alpha below which the predicted noise is
            # followed; 0.72 if None
            "low_noise": placeholder(float),
        }
    )


def distribution_matching(minimised: str = "score_implicit_matching") -> ConfigDict:
    """objectives/distribution_matching.py; needs `teacher`, reads no images."""
    return ConfigDict(
        {
            "name": "distribution_matching",
            "divergence": divergence(minimised),
            "sigma_init": 2.5,  # noise level sigma / alpha at which the generator is evaluated
            "time_sampler": log_normal(-1.2, 1.2),  # of the generator's loss
            "fake_time_sampler": log_normal(-1.2, 1.2),  # of the fake score's training
            "normalize": False,  # divide rows by the teacher's mean absolute error
            "guidance_scale": 1.0,  # of the teacher; form A, 1 is none
            "fake_score_updates": 1,  # of the fake score per update of the generator
            # Evaluate the fake score once for both losses, with one micro-batch;
            # fake_time_sampler.name must then be "".
            "joint": False,
            "regression_weight": 0.0,  # of a regression to `pairs` of the teacher; DMD: 0.25
            "regression_distance": distance(),
        }
    )
