"""Settings that methods need for small images and short runs, where papers' values do not fit."""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import methods, objectives


def short_run(config: ConfigDict, sigma_data: float) -> None:
    """Set what differs for small images and for thousands of steps, not hundreds of thousands.

    sigma_data: standard deviation of the data.
    """
    if config.prediction.kind == "F":
        config.prediction.sigma_data = sigma_data
    if config.path.name == "trigflow":
        config.path.sigma_data = sigma_data
    if config.method in SETTINGS:
        SETTINGS[config.method](config)


def ddpm(config: ConfigDict) -> None:
    """Predict v, which lcm needs of its teacher."""
    config.prediction.kind = "v"


def ct(config: ConfigDict) -> None:
    """Use few points.

    The paper's 151 points and mu_0 = 0.9 suit hundreds of thousands of steps. In a short run the
    target would lag behind by hundreds of steps in each of many cells, and samples stay noise.
    """
    config.objective.curriculum.last = 20
    config.objective.initial_decay = 0.5


def ct_flow(config: ConfigDict) -> None:
    """Let the target keep up, as in ct. The grid stays, since 128 sampling steps need its cells."""
    config.objective.initial_decay = 0.5


def lcm(config: ConfigDict) -> None:
    """50 steps of DDIM, and guidance weak enough for small images."""
    config.objective.curriculum.points = 201
    config.objective.skip = 4
    config.objective.guidance_range = (1.0, 4.0)
    config.objective.guidance_scale = 1.0


def sct(config: ConfigDict) -> None:
    """Raise the tangent's weight r over the whole run (docs/consistency.md has figures).

    A network that trains from scratch cannot denoise at first, so its tangent is of no use then.
    """
    config.optimizer.learning_rate = 5e-4
    config.objective.tangent_warmup = placeholder(int)


def scd(config: ConfigDict) -> None:
    """Take smaller steps of Adam (docs/consistency.md has figures).

    A teacher's tangent has no noise. Adam divides by the size of the gradient, so its steps grow
    until the tangent diverges.
    """
    config.optimizer.learning_rate, config.optimizer.eps = 5e-4, 1e-3
    config.objective.tangent_warmup = 1000  # the paper's is 10,000 steps
    config.objective.tangent_scale = 1.0
    config.objective.adaptive_weight = False


def one_step(config: ConfigDict) -> None:
    """Update the generator more often and further, with a fake score that keeps up.

    The published settings give too few updates to a generator that starts at noise or is updated
    every fifth step.
    """
    if config.steps is not None:  # else it is chosen when the run starts
        config.steps = config.steps // 2
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.objective.sigma_init, config.objective.fake_score_updates = 2.5, 1
    config.player_optimizers = {"fake_score": {"learning_rate": 3e-4}}
    if config.objective.divergence.name == "score_implicit_matching":
        config.objective.divergence.distance = objectives.distance("pseudo_huber", 0.1)


def shortcut(config: ConfigDict) -> None:
    """Take targets from the current network, not from its average as in the paper.

    In short runs the larger steps learn sooner from it (docs/figures.md).
    """
    config.objective.target_decay = 0.0


def mean_flow(config: ConfigDict) -> None:
    """A time scale of 4, by which short runs tell times apart sooner."""
    config.model.time_scale = 4.0


def progressive(config: ConfigDict) -> None:
    """From 16 steps on, each stage at a rate that falls to zero from the teacher's start."""
    config.objective.max_steps = 16
    config.optimizer.schedule, config.optimizer.warmup_steps = "linear", 0


def tract(config: ConfigDict) -> None:
    """From 64 steps to 8 and to 1."""
    config.objective.step_counts, config.evaluate.steps = (64, 8, 1), (1, 8)


def ctm(config: ConfigDict) -> None:
    """At most four steps of the teacher's solver, and a target that keeps up."""
    config.objective.solver_steps, config.objective.target_decay = 4, 0.95


def dsno(config: ConfigDict) -> None:
    """16 steps of the teacher's solver."""
    config.objective.solver_steps = 16


def matching(config: ConfigDict) -> None:
    """Four sampling steps; small updates, with a fake score that keeps up, as in `one_step`."""
    config.objective.least_steps, config.evaluate.steps = 4, (4,)
    config.optimizer.learning_rate = 1e-4
    if config.objective.name == "moment_matching":
        config.player_optimizers = {"fake_score": {"learning_rate": 3e-4}}


def guidance(config: ConfigDict) -> None:
    """The scales of lcm, weak enough for small images."""
    config.objective.guidance_range = (1.0, 4.0)


def autoencoder(config: ConfigDict) -> None:
    """A quarter of the steps, at a larger rate: the linear part already reconstructs.

    Without an average, since the rate falls to zero.
    """
    if config.steps is not None:  # else it is chosen when the run starts
        config.steps = config.steps // 4
    config.optimizer.learning_rate = 2e-3
    config.ema.decays = ()


SETTINGS: dict[str, Callable[[ConfigDict], None]] = {
    **{
        setting.__name__: setting
        for setting in (
            ddpm,
            ct,
            ct_flow,
            lcm,
            sct,
            scd,
            shortcut,
            mean_flow,
            progressive,
            autoencoder,
        )
        + (tract, ctm, dsno, guidance)
    },
    "improved_mean_flow": mean_flow,
    **dict.fromkeys(("moment_matching", "parameter_matching"), matching),
    **{method.__name__: one_step for method in methods.ONE_STEP},
}


def log_normal_samplers(config: ConfigDict) -> list[ConfigDict]:
    """The log-normal distributions of noise levels in a config's objective."""
    samplers = [config.objective.get(name) for name in ("time_sampler", "fake_time_sampler")]
    return [sampler for sampler in samplers if sampler is not None and sampler.name == "log_normal"]
