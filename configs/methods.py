"""Methods by the name that a config file takes after its colon: objective, path and prediction.

    config = methods.choose(base.config(), "cd")

A method sets its paper's path, prediction and objective on top of configs/base.py and
configs/objectives.py. A config file then sets what its data need. A student takes path and
prediction from its teacher instead (training/inheritance.py), so any teacher suits most methods.

Optimizers are the config file's business, with one exception: one-step generators use Adam with
b1 = 0, as SiD does. DMD2's EDM code differs: AdamW with betas 0.9 and 0.999, a weight decay of 0.01
and clipped gradients. What a paper sets for one data set is in that data set's file. For example,
configs/cifar10.py has RAdam for cd, ct, ict and ect, and starts diff_instruct at noise level 1.0
(objective.sigma_init), not 2.5.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from fewstep.configs import base, objectives
from fewstep.messages import unknown_choice

# Mean and standard deviation of the raw latents of sd-vae-ft-mse per channel, on ImageNet (Karras
# et al. 2024, arXiv:2312.02696, training/encoders.py). The factor 0.18215 alone leaves deviations
# of 0.6 to 0.84 around means of 0 to 1.06.
SD_MEAN, SD_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)


# Sampling steps to evaluate consistency models at; more steps add little.
FEW_STEPS = (1, 2, 4)


def flow_matching(config: ConfigDict) -> None:
    """Flow matching (Lipman et al. 2023): velocity on the linear path."""
    config.objective = objectives.denoising()


def edm(config: ConfigDict) -> None:
    """EDM (Karras et al. 2022, table 1)."""
    config.objective = objectives.denoising()
    edm_model(config)
    config.objective.time_sampler = objectives.log_normal(-1.2, 1.2)
    config.objective.solver.name = "heun"
    config.objective.spacing.name = "karras"


def ddpm(config: ConfigDict) -> None:
    """DDPM (Ho et al. 2020) in continuous time, sampled by DDIM; or v with prediction.kind=v."""
    config.objective = objectives.denoising()
    config.path.name = "vp_ddpm"
    config.prediction.kind = "eps"
    config.objective.solver.name = "ddim"


def trigflow(config: ConfigDict) -> None:
    """TrigFlow diffusion (Lu & Song 2025, section 3.1): the teacher of scd."""
    config.objective = objectives.denoising()
    trigflow_model(config)
    config.objective.time_sampler = objectives.log_normal(-1.0, 1.4)
    config.objective.solver.name = "ddim"


def trigflow_model(config: ConfigDict) -> None:
    """Path and prediction of sCM, and a small time scale, since its loss differentiates in t."""
    config.path.name = "trigflow"
    config.prediction.kind = "F"
    config.model.time_scale = 4.0


def shortcut(config: ConfigDict) -> None:
    """Shortcut models (Frans et al. 2024)."""
    config.objective = objectives.shortcut()


def mean_flow(config: ConfigDict) -> None:
    """MeanFlow (Geng et al. 2025), with the time scale of its code."""
    config.objective = objectives.mean_flow()
    config.evaluate.steps = FEW_STEPS
    config.model.time_scale = 1.0


def improved_mean_flow(config: ConfigDict) -> None:
    """Improved MeanFlow (Geng et al. 2025), with the time scale of MeanFlow's code."""
    mean_flow(config)
    config.objective = objectives.improved_mean_flow()


def edm_model(config: ConfigDict) -> None:
    """Path and prediction of EDM and of the consistency models built on it."""
    config.path.name = "ve"
    config.prediction.kind = "F"


def cd(config: ConfigDict) -> None:
    """Consistency distillation (Song et al. 2023), there of an edm teacher."""
    config.objective = objectives.consistency_distillation()
    config.evaluate.steps = FEW_STEPS
    edm_model(config)


def consistency_sampler(config: ConfigDict) -> None:
    """Consistency samplers of densities (Jutras-Dube et al. 2024): cd on rollouts."""
    cd(config)
    sampler_model(config)
    config.objective.source = objectives.pair_source("rollout")
    config.objective.spacing = objectives.spacing()
    config.objective.target_decay = 0.0
    config.objective.reads_score = False


def ct(config: ConfigDict) -> None:
    """Consistency training (Song et al. 2023)."""
    config.objective = objectives.consistency_training()
    config.evaluate.steps = FEW_STEPS
    edm_model(config)


def ct_flow(config: ConfigDict) -> None:
    """Consistency training on the path of flow_matching, a baseline of Frans et al. 2024.

    Its grid has equal steps of t, and doubles from 1 cell in equal parts of the run, as in their
    code. That ends with 64 cells, and samples with more steps between their points; here the last
    grid has the 128 cells of their other baselines. Times are uniform, the distance is squared L2.
    """
    ct(config)
    config.path, config.prediction = base.config().path, base.config().prediction
    config.objective.spacing.name = "uniform"
    config.objective.curriculum.update(name="doubling", first=1, last=128)


def ict(config: ConfigDict) -> None:
    """Improved consistency training (Song & Dhariwal 2023)."""
    config.objective = objectives.consistency_training()
    config.evaluate.steps = FEW_STEPS
    config.objective.curriculum.name = "doubling"
    config.objective.time_sampler = objectives.log_normal(-1.1, 2.0)
    config.objective.distance.name = "pseudo_huber"
    config.objective.weighting = "inverse_gap"
    config.objective.initial_decay = 0.0
    edm_model(config)


def ect(config: ConfigDict) -> None:
    """Easy Consistency Tuning (Geng et al. 2024), from scratch or from --config.teacher."""
    config.objective = objectives.consistency_tuning()
    config.evaluate.steps = FEW_STEPS
    edm_model(config)


def sct(config: ConfigDict) -> None:
    """Continuous-time consistency training (Lu & Song 2025)."""
    config.objective = objectives.continuous_training()
    config.evaluate.steps = FEW_STEPS
    trigflow_model(config)


def scd(config: ConfigDict) -> None:
    """Continuous-time consistency distillation of a trigflow teacher (Lu & Song 2025)."""
    sct(config)
    config.objective = objectives.continuous_distillation()


def dis(config: ConfigDict) -> None:
    """Denoising diffusion samplers of a density (Berner et al. 2024)."""
    config.objective = objectives.dis()
    with_score(config)


def dds(config: ConfigDict) -> None:
    """Denoising diffusion samplers of a density, in discrete time (Vargas et al. 2023)."""
    config.objective = objectives.dds()
    with_score(config)


def scds(config: ConfigDict) -> None:
    """Self-distilled consistent samplers of a density (Jutras-Dube et al. 2025)."""
    config.objective = objectives.scds()
    with_score(config)
    config.evaluate.steps = (*FEW_STEPS, config.objective.max_steps)


def with_score(config: ConfigDict) -> None:
    """A perceptron that is given the score of the density, on the path of samplers."""
    sampler_model(config)
    base.use_network(config, "mlp")
    config.model.score_input = True
    config.model.score_precision = 100.0


def sampler_model(config: ConfigDict) -> None:
    """Path and prediction of samplers of densities."""
    config.path.name = "vp_ddpm"
    config.path.beta_max = 10.0
    config.prediction.kind = "tilt"


def lcm(config: ConfigDict) -> None:
    """Latent consistency models (Luo et al. 2023): guided distillation, there of a ddpm teacher.

    A ddpm teacher must predict v (train it with --config.prediction.kind=v). An eps prediction
    cannot give the data at t = 1: x_0 = (x - sigma eps) / alpha amplifies its errors by
    1 / alpha = 150.
    """
    config.objective = objectives.consistency_distillation()
    config.evaluate.steps = FEW_STEPS
    config.path.name = "vp_ddpm"
    config.prediction.kind = "v"
    config.objective.curriculum.points = 1000
    config.objective.spacing.name = ""  # the teacher's: uniform for ddpm
    config.objective.skip = 20
    config.objective.teacher_solver = "ddim"
    config.objective.distance.name = "pseudo_huber_elementwise"
    config.objective.guidance_range = (3.0, 15.0)  # their omega of 2 to 14, plus one
    config.objective.guidance_scale = 8.5


def progressive(config: ConfigDict) -> None:
    """Progressive distillation (Salimans & Ho 2022).

    Without an average, since the rate falls to zero in each stage, as there.
    """
    config.objective = objectives.progressive()
    config.evaluate.steps = (*FEW_STEPS, 8)
    config.optimizer.schedule = "linear"
    config.ema.decays = ()


def tract(config: ConfigDict) -> None:
    """TRACT (Berthelot et al. 2023)."""
    config.objective = objectives.tract()
    config.evaluate.steps = (1, 32)


def ctm(config: ConfigDict) -> None:
    """Consistency trajectory models (Kim et al. 2024), without GAN, there of an edm teacher."""
    config.objective = objectives.consistency_trajectory()
    config.evaluate.steps = FEW_STEPS
    edm_model(config)


def boot(config: ConfigDict) -> None:
    """BOOT (Gu et al. 2023)."""
    config.objective = objectives.boot()
    config.evaluate.steps = (1,)


def dsno(config: ConfigDict) -> None:
    """DSNO (Zheng et al. 2023)."""
    config.objective = objectives.dsno()
    config.evaluate.steps = (1,)


def moment_matching(config: ConfigDict) -> None:
    """Moment matching (Salimans et al. 2024)."""
    config.objective = objectives.moment_matching()
    config.evaluate.steps = (8,)


def parameter_matching(config: ConfigDict) -> None:
    """Moment matching in the teacher's parameters (Salimans et al. 2024, section 3.3)."""
    config.objective = objectives.parameter_matching()
    config.evaluate.steps = (8,)


def guidance(config: ConfigDict) -> None:
    """Guidance distillation (Meng et al. 2023), stage one; `progressive` from it is stage two."""
    config.objective = objectives.guidance_distillation()


def genie(config: ConfigDict) -> None:
    """GENIE (Dockhorn et al. 2022): second-order sampling steps of a teacher, by a head on it."""
    config.objective = objectives.genie()
    config.evaluate.steps = (5, 10, 25)


def direct(config: ConfigDict) -> None:
    """Direct distillation (Luhman & Luhman 2021): one step on pairs of the teacher's sampler."""
    config.objective = objectives.direct()
    config.evaluate.steps = (1,)


def reflow(config: ConfigDict) -> None:
    """Reflow (Liu et al. 2023); a reflow run teaches the next one."""
    config.objective = objectives.reflow()
    config.evaluate.steps = (*FEW_STEPS, 8)


def reflow_distill(config: ConfigDict) -> None:
    """One step on pairs of a reflow run: InstaFlow (Liu et al. 2024), without LPIPS.

    The teacher is nearly straight, so its pairs need fewer steps.
    """
    direct(config)
    config.pairs.steps = 16


def live_reflow(config: ConfigDict) -> None:
    """Live reflow, a baseline of Frans et al. 2024."""
    config.objective = objectives.live_reflow()
    config.evaluate.steps = (*FEW_STEPS, 128)


def autoencoder(config: ConfigDict) -> None:
    """The codec of latent diffusion (Rombach et al. 2022), without discriminator."""
    config.objective = objectives.autoencoder()
    base.use_network(config, "codec")
    config.evaluate.steps = (1,)


def network(config: ConfigDict, **fields: Any) -> None:
    """Set fields of the transformer, unless the method has a network of its own."""
    if config.model.name == "dit":
        config.model.update(fields)


def one_step(config: ConfigDict, divergence: str) -> None:
    """Settings that all one-step generators share."""
    config.objective = objectives.distribution_matching(divergence)
    config.evaluate.steps = (1,)
    config.optimizer.name = "adam"
    config.optimizer.b1 = 0.0  # old gradients mislead: each loss changes with the other player
    edm_model(config)


def sim(config: ConfigDict) -> None:
    """Score Implicit Matching (Luo et al. 2024)."""
    one_step(config, "score_implicit_matching")


def sid(config: ConfigDict) -> None:
    """Score identity Distillation (Zhou et al. 2024)."""
    one_step(config, "score_identity")
    sid_weighting(config)


def sid_weighting(config: ConfigDict) -> None:
    """Noise levels and weight of SiD's code: Karras spacing up to 0.8 of it, normalized rows."""
    config.objective.normalize = True
    config.objective.time_sampler = objectives.time_sampler("equal_karras")
    config.objective.time_sampler.highest = 0.8


def diff_instruct(config: ConfigDict) -> None:
    """Diff-Instruct (Luo et al. 2023)."""
    one_step(config, "integral_kl")


def dmd(config: ConfigDict) -> None:
    """Distribution Matching Distillation (Yin et al. 2024) as DMD2 has it, without its GAN."""
    one_step(config, "integral_kl")
    config.objective.normalize = True
    config.objective.sigma_init = 80.0
    config.objective.fake_score_updates = 5
    config.objective.time_sampler = objectives.time_sampler("equal_karras")
    config.objective.time_sampler.update(lowest=0.02, highest=0.98)
    config.objective.fake_time_sampler = objectives.time_sampler("equal_karras")


def of_flow_matching(method: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
    """The same method on the path of flow_matching, named METHOD_flow.

    With a teacher the two are one, since a student inherits path and prediction. The second names
    (cd_flow, sim_flow, sid_flow, diff_instruct_flow, dmd_flow) are for --mode=compare, which trains
    the teacher that TEACHERS names. ct_flow, which has no teacher, is a method of its own.
    """

    def on_its_path(config: ConfigDict) -> None:
        method(config)
        config.path, config.prediction = base.config().path, base.config().prediction

    on_its_path.__name__ = f"{method.__name__}_flow"
    on_its_path.__doc__ = f"{method.__name__} on the path of flow_matching."
    return on_its_path


# One-step generators; they read no images.
ONE_STEP = tuple(
    kind for method in (sim, sid, diff_instruct, dmd) for kind in (method, of_flow_matching(method))
)

METHODS: dict[str, Callable[[ConfigDict], None]] = {
    method.__name__: method
    for method in (
        flow_matching,
        edm,
        ddpm,
        trigflow,
        shortcut,
        mean_flow,
        improved_mean_flow,
        cd,
        consistency_sampler,
        of_flow_matching(cd),
        ct,
        ct_flow,
        ict,
        ect,
        sct,
        scd,
        lcm,
        tract,
        ctm,
        boot,
        dsno,
        moment_matching,
        parameter_matching,
        progressive,
        guidance,
        genie,
        direct,
        reflow,
        reflow_distill,
        live_reflow,
        *ONE_STEP,
        autoencoder,
        dis,
        dds,
        scds,
    )
}

# The method that trains each student's teacher in --mode=compare; ect also trains without one.
TEACHERS = {
    "cd": "edm",
    "consistency_sampler": "dis",
    "ect": "edm",
    "scd": "trigflow",
    "lcm": "ddpm",
    "progressive": "flow_matching",
    "ctm": "edm",
    **dict.fromkeys(
        ("tract", "boot", "dsno", "moment_matching", "parameter_matching"), "flow_matching"
    ),
    "guidance": "flow_matching",
    "genie": "flow_matching",
    "direct": "flow_matching",
    "reflow": "flow_matching",
    "reflow_distill": "reflow",
    **dict.fromkeys(("sim", "sid", "diff_instruct", "dmd"), "edm"),
    **dict.fromkeys(
        ("cd_flow", "sim_flow", "sid_flow", "diff_instruct_flow", "dmd_flow"), "flow_matching"
    ),
}


def choose(config: ConfigDict, method: str) -> ConfigDict:
    """Set a method's objective, path and prediction. Raises ValueError."""
    if method not in METHODS:
        raise ValueError(unknown_choice("method", method, METHODS))
    config.method = method
    METHODS[method](config)
    return config


def frans_2024(method: str) -> ConfigDict:
    """Settings of Frans et al. 2024 for all data sets: DiT-B/2 on 32 x 32 x 4 latents.

    Methods that assume data of deviation 0.5 get latents of that deviation.
    """
    chosen = choose(base.config(), method)
    chosen.data.name = "folder:"
    chosen.data.image_size = 256
    chosen.data.channels = 3
    chosen.data.flip = True
    if method == "autoencoder":
        chosen.model.codec = "sd"
    else:
        chosen.codec.name = "sd"
    if chosen.prediction.kind == "F" or chosen.path.name == "trigflow":
        chosen.codec.scale = tuple(0.5 / std for std in SD_STD)
        chosen.codec.shift = SD_MEAN
    network(chosen, size="B", patch_size=2, dtype="bfloat16")
    chosen.optimizer.learning_rate = 1e-4
    if chosen.optimizer.name == "adamw":
        chosen.optimizer.weight_decay = 0.1
    if chosen.ema.decays:
        chosen.ema.decays = (0.999,)
    chosen.checkpoint.every = 20_000
    chosen.evaluate.every = 50_000
    chosen.evaluate.num_samples, chosen.evaluate.final_samples = 4096, 50_000
    return chosen
