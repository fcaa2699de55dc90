"""What methods need on small images and on short runs, beside their papers' values."""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import methods, objectives


def short_run(config: ConfigDict, sigma_data: float) -> None:
    """Set what differs on small images and in thousands, not hundreds of thousands, of steps.

    sigma_data: the deviation of the data.
    """
    if config.prediction.kind == "F":
        config.prediction.sigma_data = sigma_data
    if config.path.name == "trigflow":
        config.path.sigma_data = sigma_data
    if config.method in SETTINGS:
        SETTINGS[config.method](config)


def ddpm(config: ConfigDict) -> None:
    """v, as lcm needs its teacher to predict."""
    config.prediction.kind = "v"


def ct(config: ConfigDict) -> None:
    """Few points: with the paper's 151 and mu_0 = 0.9, for hundreds of thousands of steps, the
    target would trail each of many cells by hundreds of steps, and the samples stay noise.
    """
    config.objective.curriculum.last = 20
    config.objective.initial_decay = 0.5


def lcm(config: ConfigDict) -> None:
    """50 steps of DDIM, and guidance that small images bear."""
    config.objective.curriculum.points = 201
    config.objective.skip = 4
    config.objective.guidance_range = (1.0, 4.0)
    config.objective.guidance_scale = 1.0


def sct(config: ConfigDict) -> None:
    """The tangent's weight r rises over the whole run (docs/consistency.md has figures): from
    scratch a network that does not denoise yet has no tangent worth following.
    """
    config.optimizer.learning_rate = 5e-4
    config.objective.tangent_warmup = placeholder(int)


def scd(config: ConfigDict) -> None:
    """Smaller steps of Adam (docs/consistency.md has figures).

    A teacher's tangent has no noise, and Adam's steps, which divide by the size of the gradient,
    grow until the tangent runs away.
    """
    config.optimizer.learning_rate, config.optimizer.eps = 5e-4, 1e-3
    config.objective.tangent_warmup = 1000  # the paper's is 10,000 steps
    config.objective.tangent_scale = 1.0
    config.objective.adaptive_weight = config.model.loss_weight = False


def one_step(config: ConfigDict) -> None:
    """More and larger updates of the generator, with a fake score that keeps up with it.

    The published settings leave too few for a generator that starts at noise or is updated at
    every fifth step.
    """
    config.steps = config.steps // 2
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.objective.sigma_init, config.objective.fake_score_updates = 2.5, 1
    config.player_optimizers = {"fake_score": {"learning_rate": 3e-4}}
    if config.objective.divergence.name == "score_implicit_matching":
        config.objective.divergence.distance = objectives.distance("pseudo_huber", 0.1)


def shortcut(config: ConfigDict) -> None:
    """Targets of the current network, which teaches its larger steps sooner than an average of it
    (docs/figures.md). The default for long runs is the paper's EMA.
    """
    config.objective.target_decay = 0.0


def progressive(config: ConfigDict) -> None:
    """From 16 steps on, each stage at a rate that falls to zero from the teacher's start."""
    config.objective.max_steps = 16
    config.optimizer.schedule, config.optimizer.warmup_steps = "linear", 0


SETTINGS: dict[str, Callable[[ConfigDict], None]] = {
    **{setting.__name__: setting for setting in (ddpm, ct, lcm, sct, scd, shortcut, progressive)},
    **{method.__name__: one_step for method in methods.ONE_STEP},
}


def log_normal_laws(config: ConfigDict) -> list[ConfigDict]:
    """The log-normal laws of noise levels in a config's objective."""
    laws = [config.objective.get(name) for name in ("time_sampler", "fake_time_sampler")]
    return [law for law in laws if law is not None and law.name == "log_normal"]
