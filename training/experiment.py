"""From a config to functions: the one place where config fields meet the rest of Fewstep."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data.spaces.space import Space
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Kind, raw_kind
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.base import Follower, Objective
from fewstep.objectives.followers import constant_ema, power_ema, warmed_ema
from fewstep.training.construct import Run, choose, construct, construct_with_parts
from fewstep.training.networks import build_network, shrunk, written_out
from fewstep.training.optimizer import OPTIMIZERS, SCHEDULES, Optimizer, optimizer
from fewstep.training.sharding import spread
from fewstep.training.spaces import build_space
from fewstep.training.storage.fields import HEADS, OPTIMIZER, is_finite
from fewstep.training.storage.identity import check_known

# Fields of an optimizer that are entries of tables.
TABLES = {"name": OPTIMIZERS, "schedule": SCHEDULES}
# Fields of an optimizer that a head may have of its own; spikes are those of the whole player.
OF_HEADS = [field for field in OPTIMIZER if not field.startswith("spike")]


class Experiment(NamedTuple):
    """What a config describes.

    guidable: whether there are classes, and a null class that guidance can extrapolate from; a
        method without label_dropout says itself at which scales it samples.
    sample_with: the network, or average of it, that samples.
    """

    model: Model
    objective: Objective
    optimizers: Mapping[str, Optimizer]
    space: Space
    num_classes: int
    guidable: bool
    sample_with: str


def build(config: ConfigDict, network: Network | None = None) -> Experiment:
    """The experiment of a config whose data fields are resolved. Raises ValueError.

    network: in the place of the config's own, if given.
    """
    model = build_model(config)
    if network is not None:
        model = model._replace(network=network)
    objective = build_objective(config, model)
    averages = ema_followers(config.ema, objective.generator)
    objective = objective._replace(followers={**objective.followers, **averages})
    experiment = Experiment(
        model=model,
        objective=objective,
        optimizers=build_optimizers(config, objective),
        space=build_space(config),
        num_classes=config.data.num_classes,
        guidable=config.data.num_classes > 0 and config.objective.get("label_dropout", 1.0) > 0.0,
        sample_with=sampled_network(config.ema.sample_with, averages, objective),
    )
    for scale in (objective.guidance_scale, *config.objective.get("guidance_range", ())):
        check_guidance(experiment, scale)
    return experiment


def build_on(config: ConfigDict, mesh: Mesh) -> Experiment:
    """The experiment as it is trained on a mesh: all devices share the rows of the network.

    Raises ValueError.
    """
    return build(config, spread(build_model(config).network, mesh))


def rebuild(config: ConfigDict, run: str) -> Experiment:
    """The experiment of a recorded config. Raises ValueError for a field that is no more.

    config: with all fields of this version (workdir.load_config). Kernels that the machine of the
    run had are used if this one has them too.
    """
    check_known(config, run)
    if config.model.get("attention") == "cudnn":
        config = config.copy_and_resolve_references()
        config.model.attention = "auto"
    return build(config)


def build_model(config: ConfigDict) -> Model:
    """The network of a config on its path. Raises ValueError."""
    network = build_network(config)
    path = construct(PATHS, config.path, "path")
    kind = build_kind(config.prediction.kind, config.prediction.sigma_data)
    if path.name == "ve" and kind.name != "F":
        raise ValueError(
            f"path.name=ve needs prediction.kind=F, which scales the network's input; "
            f"{kind.name} would be given noise of deviation {path.t_max:g}"
        )
    return Model(network, path, kind)


def build_kind(name: str, sigma_data: float | None) -> Kind:
    """What the network predicts; sigma_data is F's alone. Raises ValueError."""
    kind = choose(KINDS, name, "prediction.kind")
    if sigma_data is None:
        return kind
    if name != "F":
        raise ValueError(
            f"prediction.sigma_data is not used by prediction.kind={name}, only by F; leave it "
            "unset"
        )
    if sigma_data <= 0.0:
        raise ValueError(f"prediction.sigma_data={sigma_data:g} must be positive")
    return raw_kind(sigma_data)


def build_objective(config: ConfigDict, model: Model) -> Objective:
    """The objective of a config, its named parts built first. Raises ValueError."""
    run = Run(model.path, config.steps)
    fields = config.objective.to_dict()
    objective = construct_with_parts(OBJECTIVES, fields, "objective", run, model)
    if not (config.teacher and config.start_from_teacher):
        objective = objective._replace(init_from={})
    if config.teacher and not (objective.needs_teacher or objective.init_from):
        raise ValueError(
            f"teacher is not used by {config.method} with "
            f"start_from_teacher={config.start_from_teacher}; leave it unset"
        )
    return objective


def check_guidance(experiment: Experiment, scale: float) -> None:
    """Raises ValueError for a guidance scale that the network was not trained for."""
    if not is_finite(scale):
        raise ValueError(f"the guidance scale {scale} is not finite")
    if scale != 1.0 and not experiment.guidable:
        raise ValueError(
            f"guidance scale {scale:g} needs a network that knows the null class: train with "
            "data.num_classes above 0 and objective.label_dropout above 0, or use scale 1"
        )


def as_it_runs(config: ConfigDict) -> ConfigDict:
    """The config as a run records it: the network's fields written out, shrunk if `debug` is on.

    The config's data fields are resolved. Raises ValueError for an unknown network.
    """
    return debugged(config) if config.debug else written_out(config)


def debugged(config: ConfigDict) -> ConfigDict:
    """The config as a run of about a minute on one device: tiny network, few steps and samples.

    The config's data fields are resolved. Where samples would be measured with a file of weights,
    they are only shown.
    """
    config = shrunk(config)
    config.steps = min(config.steps, 50)
    config.batch_size = min(config.batch_size, 64)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.steps // 5)
    config.log.every = 10
    config.checkpoint.every = 25
    config.evaluate.every = 0
    config.evaluate.num_samples, config.evaluate.final_samples = 64, 0
    config.evaluate.batch_size = 64
    config.evaluate.steps = config.evaluate.steps[:2]
    if config.evaluate.features in ("inception", "dinov2"):
        config.evaluate.features, config.evaluate.weights = "none", ""
    return config


def ema_followers(ema: ConfigDict, source: str) -> dict[str, Follower]:
    """One follower of `source` for each of ema.decays and ema.power_stds."""
    update = warmed_ema if ema.warmup else constant_ema
    constant = {f"ema_{decay:g}": update(decay) for decay in ema.decays}
    power = {f"power_{std:g}": power_ema(std) for std in ema.power_stds}
    averages = (constant | power).items()
    return {name: Follower(source, update, restarts=True) for name, update in averages}


def sampled_network(name: str, averages: Mapping[str, Follower], objective: Objective) -> str:
    """The network that samples: the one named, else the first average, else the generator."""
    if not name:
        return next(iter(averages), objective.generator)
    choose({**averages, objective.generator: None}, name, "ema.sample_with")
    return name


def with_sampled(config: ConfigDict, run: str, name: str, asked_by: str) -> ConfigDict:
    """The recorded config of a run with `name` as the network that samples.

    Raises ValueError, which names the flag or field `asked_by`, if the run has no such network.
    """
    experiment = rebuild(config, run)
    averages = ema_followers(config.ema, experiment.objective.generator)
    choose({**averages, experiment.objective.generator: None}, name, asked_by)
    config = config.copy_and_resolve_references()
    config.ema.sample_with = name
    return config


def optimizer_fields(config: ConfigDict, player: str) -> dict[str, Any]:
    """The fields of a player's optimizer: config.optimizer with its player_optimizers on top."""
    own = {**config.player_optimizers.get(player, {})}
    own.pop(HEADS, None)
    for field in own:
        choose(config.optimizer, field, f"player_optimizers.{player}")
    return {**config.optimizer, **own}


def head_fields(config: ConfigDict, player: str, network: Network) -> dict[str, dict[str, Any]]:
    """The fields in which the heads of a player's network have optimizers of their own, by head.

    Raises ValueError for a head or a field that does not exist.
    """
    heads = config.player_optimizers.get(player, {}).get(HEADS, {})
    table = {head.name: head for head in network.heads}
    for head, own in heads.items():
        choose(table, head, f"player_optimizers.{player}.{HEADS}")
        for field in own:
            choose(dict.fromkeys(OF_HEADS), field, f"player_optimizers.{player}.{HEADS}.{head}")
            if field in TABLES:
                choose(TABLES[field], own[field], f"optimizer.{field}")
    return {head: {**own} for head, own in heads.items()}


def build_optimizers(config: ConfigDict, objective: Objective) -> dict[str, Optimizer]:
    """The optimizer of each player."""
    for player in config.player_optimizers:
        choose(objective.players, player, "player_optimizers")
    optimizers = {}
    for name, player in objective.players.items():
        fields = optimizer_fields(config, name)
        for field, table in TABLES.items():
            choose(table, fields[field], f"optimizer.{field}")
        updates, *starts = (
            -(-step // player.every)
            for step in (config.steps, *(stage.start for stage in objective.stages))
        )
        optimizers[name] = optimizer(
            **fields,
            updates=updates,
            starts=starts,
            heads=head_fields(config, name, player.network),
        )
    return optimizers
