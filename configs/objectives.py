"""Every field of an objective and of its parts, its default, unit and meaning.

None takes the default of the function that reads the field.
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
            "lowest": placeholder(float),  # equal_karras: fraction of the range, 0 is data, 1 noise
            "highest": placeholder(float),  # equal_karras: likewise
        }
    )


def log_normal(mean: float, std: float) -> ConfigDict:
    """Log-normal noise levels."""
    fields = time_sampler()
    fields.update(name="log_normal", mean=mean, std=std)
    return fields


def spacing(name: str = "uniform") -> ConfigDict:
    """How a grid of times is spaced: uniform or quadratic in t, or karras(power) in noise levels.

    A student with the name "" takes the spacing of its teacher's sampling steps.
    """
    return ConfigDict({"name": name, "power": placeholder(float)})


def solver(name: str = "euler") -> ConfigDict:
    """How a denoiser is sampled."""
    return ConfigDict(
        {
            # euler, ddim, heun, genie, deis, dpm_solver_2m, dpm_solver_3m, unipc, pndm; ancestral,
            # churned_heun; on vp_ddpm and vp_discrete euler_maruyama, exponential
            "name": name,
            "order": placeholder(int),  # deis, unipc: 1, 2 or 3
            "variable": placeholder(str),  # deis: t or log_rho, of the polynomial of eps
            "variance": placeholder(str),  # ancestral: small or large
            "churn": placeholder(float),  # churned_heun: noise added over all steps (S_churn)
            "churn_min": placeholder(float),  # churned_heun: noise is added from this noise level
            "churn_max": placeholder(float),  # churned_heun: up to this noise level
            "noise": placeholder(float),  # churned_heun: scale of the added noise (S_noise)
        }
    )


def denoising() -> ConfigDict:
    """objectives/denoising.py: flow matching, EDM, DDPM, by `prediction` and `path`."""
    return ConfigDict(
        {
            "name": "denoising",
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # probability that a row trains without its label
            "guidance_scale": 1.0,  # when sampling; form A, 1 is no guidance
            "solver": solver(),
            "spacing": spacing(),  # of the sampling steps
            "ends_at": "path",  # the last sampling step ends at the path's t_min; data, as in EDM
            # How many leading channels are guided in sampling; None is all, 3 the code of DiT, SiT
            "guided_channels": placeholder(int),
        }
    )


def dis() -> ConfigDict:
    """objectives/dis.py; needs a density, data.name=density:NAME."""
    return ConfigDict(
        {
            "name": "dis",
            "path_loss": "log_variance",  # or kl
            "path_steps": 100,  # steps of a path in training
            # Of sampling. The diffusion itself is euler_maruyama for dis, exponential for dds.
            "solver": solver("heun"),
            "spacing": spacing(),  # of the steps
        }
    )


def dds() -> ConfigDict:
    """objectives/dds.py; needs a density, data.name=density:NAME."""
    fields = dis()
    fields.update(name="dds", path_loss="kl", path_steps=128)
    return fields


def scds() -> ConfigDict:
    """objectives/scds.py; needs a density, data.name=density:NAME."""
    return ConfigDict(
        {
            "name": "scds",
            "max_steps": 128,  # most sampling steps, a power of two; steps of a path in training
            "path_loss": "log_variance",  # or kl
            "bootstrap_weight": 1.0,  # of the losses of steps larger than the finest
            "leftover_rows": "coarse",  # as for shortcut
            "target_decay": 0.0,  # EMA decay of the targets' network; 0 is the network itself
            "distance": distance("squared_l2"),
        }
    )


def distance(name: str = "squared_l2", c: float | None = None) -> ConfigDict:
    """Distance between the network's output and its target."""
    fields = ConfigDict(
        {
            # squared_l2, l1, pseudo_huber, pseudo_huber_elementwise, norm, huber, log_cosh,
            # exponential, cauchy; features: of images, by the classifier of the data; lpips: of
            # images, by a network of ImageNet
            "name": name,
            # pseudo_huber: None is 0.00054 sqrt(D), 0 is the norm. pseudo_huber_elementwise,
            # huber, exponential, cauchy: the scale
            "c": placeholder(float),
            "power": placeholder(float),  # norm: || a - b ||^power
            "pixels": placeholder(float),  # features, lpips: weight of the l1 distance of pixels
            "network": placeholder(str),  # lpips: vgg or alex
            "weights": placeholder(str),  # lpips: its files; None is $FEWSTEP_LPIPS
            # features, lpips, of latents: True compares the images that they decode to; False,
            # lpips alone, compares latents of 1 or 3 channels as they are
            "decoded": placeholder(bool),
        }
    )
    fields.c = c
    return fields


def autoencoder() -> ConfigDict:
    """objectives/autoencoder.py."""
    return ConfigDict(
        {
            "name": "autoencoder",
            "distance": distance("l1"),  # between images and their reconstructions
            "kl_weight": 1e-4,  # of the mean KL per dimension of the latent
        }
    )


def shortcut() -> ConfigDict:
    """objectives/shortcut.py."""
    return ConfigDict(
        {
            "name": "shortcut",
            "max_steps": 128,  # M: step sizes are 1/M, 2/M, 4/M, ..., 1
            "bootstrap_fraction": 0.25,  # of the batch; paper 1/4, official code 1/8
            "leftover_rows": "coarse",  # step sizes that get rows beyond equal numbers: or largest
            "target_decay": 0.999,  # EMA decay of the bootstrap target; 0 uses the network itself
            "target_warmup": True,  # decay at most (1 + step) / (10 + step)
            "time_sampler": time_sampler(),  # of the flow-matching rows
            "label_dropout": 0.1,  # of the flow-matching rows
            # Learned at the finest step; form A, 1 is no guidance; with guidance_range, the default
            # when sampling.
            "guidance_scale": 1.0,
            "guidance_range": (),  # (low, high) of the scales that the network is conditioned on
            "distance": distance(),  # squared L2 in the paper
        }
    )


def mean_flow() -> ConfigDict:
    """objectives/mean_flow.py."""
    fields = ConfigDict(
        {
            "name": "mean_flow",
            "time_sampler": time_sampler("logit_normal"),  # of t and s
            "interval_fraction": 0.25,  # of the rows, one over an integer; the others have s = t
            "label_dropout": 0.1,  # probability that a row trains without its label
            "guidance_scale": 1.0,  # that the network learns; form A, 1 is no guidance
            "velocity": "sample",  # what the network learns: of samples, or of the teacher
            "mixing": 0.0,  # kappa: share of the network's own velocity in the guided target
            "weight_power": 1.0,  # p of the weight 1 / (squared error + c)^p; 0 is no weight
            "weight_offset": 0.01,  # c; 0.001 in the paper
        }
    )
    fields.time_sampler.update(mean=-0.4, std=1.0)
    return fields


def improved_mean_flow() -> ConfigDict:
    """objectives/improved_mean_flow.py."""
    fields = mean_flow()
    del fields["mixing"], fields["velocity"]
    fields.update(
        name="improved_mean_flow",
        interval_fraction=0.5,
        guidance_range=(1.0, 8.0),  # (low, high) of the scales that the network learns, or ()
        guidance_interval=(0.0, 1.0),  # (start, end) when sampling, fractions from data to noise
    )
    return fields


def curriculum(name: str = "constant") -> ConfigDict:
    """How many points the time grid has, by training step."""
    return ConfigDict(
        {
            "name": name,  # constant, square_root, doubling
            "points": placeholder(int),  # constant
            # At the start: points for square_root, cells for doubling (one less than points).
            "first": placeholder(int),
            "last": placeholder(int),  # at the end: cells, for both
            "total_steps": placeholder(int),  # square_root, doubling: their length; None is `steps`
        }
    )


def consistency_distillation() -> ConfigDict:
    """objectives/consistency_distillation.py; needs `teacher`."""
    return ConfigDict(
        {
            "name": "consistency_distillation",
            "curriculum": curriculum(),
            "spacing": spacing("karras"),  # of the training grid and of the sampling steps
            "skip": 1,  # cells of the grid between the two times
            "teacher_solver": "heun",  # solver of the teacher's step: euler, ddim, heun
            "distance": distance(),
            "weighting": "uniform",  # uniform, inverse_gap, velocity
            "target_decay": 0.95,  # EMA decay of the target; 0 uses the network itself
            # Guidance of the teacher; with guidance_range, the default when sampling.
            "guidance_scale": 1.0,
            # (low, high) of the scales that the network is conditioned on; needs
            # model.guidance_input
            "guidance_range": (),
            "sample_times": (),  # times of the steps after the first, when there are that many
            "source": pair_source(),  # where the two points come from
            "reads_score": True,  # whether a student of a sampler is given the score too
        }
    )


def pair_source(name: str = "data") -> ConfigDict:
    """Where the two points that cd compares come from (objectives/point_pairs.py)."""
    return ConfigDict(
        {
            "name": name,  # data; samples, rollout, trajectories of the teacher, without data
            "groups": placeholder(int),  # rollout: groups of rows, which end at one time each
            "substeps": placeholder(int),  # rollout, trajectories: teacher's steps in each cell
        }
    )


def consistency_training() -> ConfigDict:
    """objectives/consistency_training.py"""
    return ConfigDict(
        {
            "name": "consistency_training",
            "curriculum": curriculum("square_root"),
            "spacing": spacing("karras"),  # of the training grid and of the sampling steps
            "time_sampler": time_sampler(""),  # distribution over cells; "" is uniform
            "distance": distance(),
            "weighting": "uniform",  # uniform, inverse_gap, velocity
            "initial_decay": 0.9,  # mu_0 of the target's EMA; 0 uses the network itself
            "sample_times": (),  # times of the steps after the first, when there are that many
        }
    )


def consistency_tuning() -> ConfigDict:
    """objectives/consistency_tuning.py; starts from `teacher` if there is one."""
    return ConfigDict(
        {
            "name": "consistency_tuning",
            "total_steps": placeholder(int),  # while the gap shrinks; None is `steps`
            "stages": 8,  # equal parts of total_steps; after each the gap shrinks by q
            "q": 2.0,
            "k": 8.0,
            "b": 1.0,
            "time_sampler": log_normal(-1.1, 2.0),
            "distance": distance("pseudo_huber", 0.0),  # the norm
            "weighting": "inverse_gap",  # uniform, inverse_gap, velocity
            "spacing": spacing("karras"),  # of the sampling steps
            "sample_times": (),  # times of the steps after the first, when there are that many
        }
    )


def continuous_training() -> ConfigDict:
    """objectives/continuous_consistency.py, sCT; needs path.name = "trigflow"."""
    return ConfigDict(
        {
            "name": "continuous_training",
            "time_sampler": log_normal(-1.0, 1.4),
            "tangent_warmup": 10_000,  # steps until the tangent has full weight; None is `steps`
            "tangent_scale": 0.1,  # c of g / (||g|| + c)
            "adaptive_weight": True,  # learn a weight for each t; needs model.loss_weight
            "spacing": spacing(),  # of the sampling steps
            "sample_times": (),  # times of the steps after the first, when there are that many
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
            # Of the error of x_0: truncated_snr, snr_plus_one, velocity
            "weighting": "truncated_snr",
            "spacing": spacing(""),  # of the steps; "" is the teacher's
            # Of the first teacher, which later ones inherit; with guidance_range, the default when
            # sampling; form A.
            "guidance_scale": 1.0,
            # (low, high) of the scales that the students are conditioned on; () is the teacher's
            "guidance_range": (),
        }
    )


def guidance_distillation() -> ConfigDict:
    """objectives/guidance_distillation.py; needs `teacher`."""
    return ConfigDict(
        {
            "name": "guidance_distillation",
            "guidance_range": (1.0, 5.0),  # (low, high) of the scales that condition the network
            "guidance_scale": 1.0,  # when sampling; form A
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # probability that a row trains without its label
            "solver": solver("ddim"),
            "spacing": spacing(""),  # of the sampling steps; "" is the teacher's
            "ends_at": "path",  # the last sampling step ends at the path's t_min; data, as in EDM
        }
    )


def genie() -> ConfigDict:
    """objectives/genie.py; needs `teacher`, and starts from it."""
    return ConfigDict(
        {
            "name": "genie",
            "head_width": 128,  # units of the head's hidden layer
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # probability that a row trains without its label
            "guidance_scale": 1.0,  # of the network, in training and in sampling; form A
            "spacing": spacing(""),  # of the sampling steps; "" is the teacher's
            "ends_at": "path",  # the last sampling step ends at the path's t_min; data, as in EDM
        }
    )


def direct() -> ConfigDict:
    """objectives/direct.py; needs `teacher`, of which it reads `pairs`."""
    return ConfigDict(
        {
            "name": "direct",
            "distance": distance(),  # between the network's sample and the teacher's
            "guidance_scale": 1.0,  # of the teacher's samples; form A
        }
    )


def reflow() -> ConfigDict:
    """objectives/reflow.py; needs `teacher`, of which it reads `pairs`."""
    return ConfigDict(
        {
            "name": "reflow",
            "time_sampler": time_sampler(),
            "guidance_scale": 1.0,  # of the teacher's samples; form A
            "solver": solver("ddim"),
            "spacing": spacing(),  # of the sampling steps
            "ends_at": "path",  # the last sampling step ends at the path's t_min; data, as in EDM
        }
    )


def live_reflow() -> ConfigDict:
    """objectives/live_reflow.py."""
    return ConfigDict(
        {
            "name": "live_reflow",
            "rollout_steps": 8,  # steps of the flow that make a pair; paper 128, its code 8
            "live_fraction": 0.125,  # of the rows, one over an integer, that train on such pairs
            "target_decay": 0.0,  # EMA decay of the network that makes them; 0 uses itself
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # of the flow rows
            "guidance_scale": 1.0,  # of the pairs; form A
        }
    )


def tract() -> ConfigDict:
    """objectives/tract.py; needs `teacher`, and starts from it."""
    return ConfigDict(
        {
            "name": "tract",
            "total_steps": placeholder(int),  # of training, in equal stages; None is `steps`
            # Sampling steps of the first teacher, then of the student of each stage; each a divisor
            # of the one before.
            "step_counts": (1024, 32, 1),
            # Of the error of x_0: truncated_snr, snr_plus_one, velocity
            "weighting": "truncated_snr",
            "spacing": spacing(""),  # of the steps; "" is the teacher's
            "target_decay": 0.5,  # EMA decay of the target; 0 is the network itself
            "average_residual": 1e-3,  # share of a stage's first network in the next teacher
            "guidance_scale": 1.0,  # of the first teacher, which later ones inherit; form A
        }
    )


def consistency_trajectory() -> ConfigDict:
    """objectives/consistency_trajectory.py; needs `teacher`."""
    return ConfigDict(
        {
            "name": "consistency_trajectory",
            "points": 18,  # of the grid of times
            "spacing": spacing("karras"),  # of the training grid and of the sampling steps
            "solver_steps": 17,  # most steps of the teacher's solver, below points
            "teacher_solver": "heun",  # solver of the teacher's steps: euler, ddim, heun
            "distance": distance(),
            "target_decay": 0.999,  # EMA decay of the target
            "denoising_weight": 1.0,  # of the denoising loss, before its balance; 0 for none
            # Of the denoising loss; "" is half log-normal, half noisier.
            "time_sampler": time_sampler(""),
            "guidance_scale": 1.0,  # of the teacher; form A, 1 is no guidance
            "gamma": 0.0,  # share of the noise that sampling renews: 0 for the ODE, 1 for all
            "sample_times": (),  # times of the steps after the first, when there are that many
        }
    )


def boot() -> ConfigDict:
    """objectives/boot.py; needs `teacher`, reads no images."""
    return ConfigDict(
        {
            "name": "boot",
            "gap": 0.04,  # size of the teacher's step, a fraction of the spacing
            "spacing": spacing(""),  # of the times; "" is that of the teacher's sampling steps
            "teacher_solver": "ddim",  # solver of the teacher's step: euler, ddim, heun
            "distance": distance(),
            "boundary_weight": 1.0,  # of the condition at pure noise
            "guidance_scale": 1.0,  # of the teacher; form A, 1 is no guidance
        }
    )


def dsno() -> ConfigDict:
    """objectives/dsno.py; needs `teacher`, reads no images."""
    return ConfigDict(
        {
            "name": "dsno",
            "times": 4,  # points of a trajectory that the network makes together
            "solver_steps": 64,  # steps of the teacher's solver, a multiple of times
            "teacher_solver": "ddim",  # solver of the teacher's steps: euler, ddim, heun
            "spacing": spacing(""),  # of these steps; "" is the teacher's
            "distance": distance(),
            "guidance_scale": 1.0,  # of the teacher; form A, 1 is no guidance
        }
    )


def moment_matching() -> ConfigDict:
    """objectives/moment_matching.py; needs `teacher`."""
    return ConfigDict({**parameter_matching(), "name": "moment_matching", "guidance_scale": 1.0})


def parameter_matching() -> ConfigDict:
    """objectives/parameter_matching.py; needs `teacher`."""
    return ConfigDict(
        {
            "name": "parameter_matching",
            "least_steps": 8,  # fewest sampling steps that the network is trained for
            "spacing": spacing(""),  # of the training times and the steps; "" is the teacher's
        }
    )


def divergence(name: str = "score_implicit_matching") -> ConfigDict:
    """The divergence that a one-step generator minimises (objectives/divergences.py)."""
    return ConfigDict(
        {
            # score_implicit_matching, score_identity, integral_kl, score_distillation,
            # noise_free_score_distillation
            "name": name,
            # score_implicit_matching: between the two denoised estimates; "" is pseudo_huber
            "distance": distance(""),
            "alpha": placeholder(float),  # score_identity: None is 1.2
            # noise_free_score_distillation: below this noise level sigma / alpha the gradient
            # follows the predicted noise; None is 0.72
            "low_noise": placeholder(float),
        }
    )


def distribution_matching(divergence_name: str = "score_implicit_matching") -> ConfigDict:
    """objectives/distribution_matching.py; needs `teacher`, reads no images."""
    return ConfigDict(
        {
            "name": "distribution_matching",
            "divergence": divergence(divergence_name),
            "sigma_init": 2.5,  # noise level sigma / alpha of the generator's input
            "time_sampler": log_normal(-1.2, 1.2),  # of the generator's loss
            "fake_time_sampler": log_normal(-1.2, 1.2),  # of the fake score's loss
            "normalize": False,  # divide each row by the teacher's mean absolute error
            "guidance_scale": 1.0,  # of the teacher; form A, 1 is no guidance
            "fake_score_updates": 1,  # fake-score updates per update of the generator
            # Evaluate the fake score once for both losses; needs micro_batches=1 and an empty
            # fake_time_sampler.name.
            "joint": False,
            "regression_weight": 0.0,  # weight of the regression on the teacher's pairs; DMD: 0.25
            "regression_distance": distance(),
        }
    )
