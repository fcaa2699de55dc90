"""Turns a config into functions: the one place where config fields meet the rest of Fewstep."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data.spaces.space import Space
from fewstep.densities.table import density_of
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Kind, raw_kind
from fewstep.latents.codec import Codec
from fewstep.messages import unknown_choice
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.models.user_sampler import is_sampler_file
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.base import Objective
from fewstep.samplers import SOLVERS
from fewstep.training import decoder_density  # noqa: F401  (densities of runs)
from fewstep.training.averages import averages, check_sampling_network, sampling_network
from fewstep.training.codec_weights import TRAINING
from fewstep.training.codecs import network_codec
from fewstep.training.construct import RunContext, construct, construct_with_parts, look_up
from fewstep.training.densities import check_density_network, sampler_reader
from fewstep.training.networks import build_network, with_network_fields, with_tiny_network
from fewstep.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    Continuation,
    Optimizer,
    build_optimizer,
)
from fewstep.training.sharding import spread
from fewstep.training.spaces import build_space
from fewstep.training.storage.fields import HEADS, OPTIMIZER, is_finite
from fewstep.training.storage.identity import check_known_fields
from fewstep.training.storage.lengths import Length

DEBUG_ROWS = 64
# Pairs that the teacher makes for a debug run, and its sampling steps for each.
DEBUG_PAIRS, DEBUG_PAIR_STEPS = 256, 4
DEBUG_RATE = 1e-3
# Optimizer fields that name table entries.
TABLES = {"name": OPTIMIZERS, "schedule": SCHEDULES}
# Optimizer fields that may differ for a head; spikes are detected for the whole player.
HEAD_FIELDS = [field for field in OPTIMIZER if not field.startswith("spike")]


class Experiment(NamedTuple):
    """What a config describes.

    guidable: whether the network knows classes and the null class, as guidance needs; a method
        without label_dropout decides itself at which scales it samples.
    sample_with: name of the network or average that samples.
    codec: of its latents as the network sees them, None for a network of examples.
    """

    model: Model
    objective: Objective
    optimizers: Mapping[str, Optimizer]
    space: Space
    num_classes: int
    guidable: bool
    sample_with: str
    codec: Codec | None = None


def build(
    config: ConfigDict, network: Network | None = None, lengths: Sequence[Length] = ()
) -> Experiment:
    """The experiment of a config whose data fields are resolved. Raises ValueError.

    network: replaces the config's own, if given. lengths: those of a run that was continued
    (training/storage/lengths.py).
    """
    model = build_model(config)
    if network is not None:
        model = model._replace(network=network)
    space = build_space(config)
    codec = network_codec(config) if config.codec.name else None
    objective = build_objective(config, model, codec)
    own = averages(config.ema, objective.generator)
    objective = objective._replace(followers={**objective.followers, **own})
    experiment = Experiment(
        model=model,
        objective=objective,
        optimizers=build_optimizers(config, objective, lengths),
        space=space,
        num_classes=config.data.num_classes,
        guidable=config.data.num_classes > 0 and config.objective.get("label_dropout", 1.0) > 0.0,
        sample_with=sampling_network(config.ema, objective.generator),
        codec=codec,
    )
    for scale in (objective.guidance_scale, *config.objective.get("guidance_range", ())):
        check_guidance(experiment, scale)
    return experiment


def build_on(config: ConfigDict, mesh: Mesh, lengths: Sequence[Length] = ()) -> Experiment:
    """The experiment for training on a mesh; the network splits its rows over all devices.

    lengths: as for `build`. Raises ValueError.
    """
    return build(config, spread(build_model(config).network, mesh), lengths)


def rebuild(config: ConfigDict, run: str) -> Experiment:
    """The experiment of a recorded config. Raises ValueError for a field that no longer exists.

    config: has all fields of this version (workdir.load_config). The attention kernels of the run's
    machine are used only if this machine has them.
    """
    check_known_fields(config, run)
    if config.model.get("attention") == "cudnn":
        config = config.copy_and_resolve_references()
        config.model.attention = "auto"
    return build(config)


def build_model(config: ConfigDict) -> Model:
    """A config's network on its path. Raises ValueError."""
    if config.codec.name and config.objective.name == TRAINING:
        raise ValueError(
            f"codec.name={config.codec.name} is not used by {TRAINING}, which trains the codec "
            "model.codec on images; leave it unset"
        )
    network = build_network(config)
    path = construct(PATHS, config.path, "path")
    kind = build_kind(config.prediction.kind, config.prediction.sigma_data)
    if path.name == "ve" and kind.name != "F":
        raise ValueError(
            f"path.name=ve needs prediction.kind=F, which scales the network's input; "
            f"with {kind.name} it would see noise of standard deviation {path.t_max:g}"
        )
    density = density_of(config.data.name)
    check_density_network(config, network, density)
    path = path if density is None else path.from_standard_normal()
    sampler = sampler_reader(config, density) if is_sampler_file(config.teacher) else None
    return Model(network, path, kind, tuple(config.teacher_scales), density, sampler)


def build_kind(name: str, sigma_data: float | None) -> Kind:
    """The kind of prediction; only F takes sigma_data. Raises ValueError."""
    kind = look_up(KINDS, name, "prediction.kind")
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


def build_objective(config: ConfigDict, model: Model, codec: Codec | None = None) -> Objective:
    """The objective of a config, with the parts that it names. Raises ValueError."""
    run = RunContext(model.path, config.steps, codec)
    fields = config.objective.to_dict()
    objective = construct_with_parts(OBJECTIVES, fields, "objective", run, model)
    by_file = is_sampler_file(config.teacher)  # which has no parameters to start from
    if by_file or not (config.teacher and config.start_from_teacher):
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


def effective_config(config: ConfigDict) -> ConfigDict:
    """The config as a run records it: all network fields set, and `debug` applied if it is on.

    Expects resolved data fields. Raises ValueError for an unknown network.
    """
    return debug_config(config) if config.debug else with_network_fields(config)


def debug_config(config: ConfigDict) -> ConfigDict:
    """The config of a run of about a minute on one device: tiny network, few steps and samples.

    Expects resolved data fields. Fields in `debug_keeps` stay. A student keeps the network of its
    teacher. Evaluations that would need a file of weights only show samples.
    """
    config = with_network_fields(config) if config.teacher else with_tiny_network(config)
    kept = {*config.debug_keeps}
    steps = config.steps if "steps" in kept else min(config.steps, 50)
    small = {
        "steps": steps,
        "batch_size": min(config.batch_size, debug_rows(build_space(config).shape)),
        # Few rows after a short warm-up: the rates of some density configs diverge.
        "optimizer.learning_rate": min(config.optimizer.learning_rate, DEBUG_RATE),
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, steps // 5),
        "log.every": 10,
        "checkpoint.every": 25,
        "evaluate.every": 0,
        "evaluate.num_samples": DEBUG_ROWS,
        "evaluate.final_samples": 0,
        "evaluate.batch_size": DEBUG_ROWS,
        "evaluate.steps": config.evaluate.steps[:2],
        "pairs.count": min(config.pairs.count, DEBUG_PAIRS),
        "pairs.steps": min(config.pairs.steps, DEBUG_PAIR_STEPS),
    }
    if config.evaluate.features in ("inception", "dinov2") and "evaluate.features" not in kept:
        small |= {"evaluate.features": "none", "evaluate.weights": ""}
    config.update_from_flattened_dict({k: v for k, v in small.items() if k not in kept})
    return config


def debug_rows(shape: Sequence[int]) -> int:
    """Rows of a batch in a debug run: fewer of images larger than latents of 32 x 32 x 4."""
    return DEBUG_ROWS if math.prod(shape) <= 4096 else DEBUG_ROWS // 4


def with_sampling_network(config: ConfigDict, run: str, name: str, asked_by: str) -> ConfigDict:
    """The recorded config of a run, with `name` as the network that samples.

    Raises ValueError that names the flag or field `asked_by` if the run has no such network.
    """
    check_sampling_network(config.ema, rebuild(config, run).objective.generator, name, asked_by)
    config = config.copy_and_resolve_references()
    config.ema.sample_with = name
    return config


def with_solver(config: ConfigDict, run: str, name: str) -> ConfigDict:
    """The recorded config of a run, sampled by the solver `name` with the solver's own defaults.

    Raises ValueError for a run that no solver samples, and for a solver that does not exist.
    """
    if "solver" not in config.objective:
        raise ValueError(
            f"--solver={name} has no use: {run} is a run of {config.method}, which has no solver"
        )
    if name not in SOLVERS:
        raise ValueError(unknown_choice("--solver", name, SOLVERS))
    config = config.copy_and_resolve_references()
    if name != config.objective.solver.name:
        fields = dict.fromkeys(config.objective.solver)
        config.objective.solver = ConfigDict({**fields, "name": name})
    return config


def optimizer_fields(config: ConfigDict, player: str) -> dict[str, Any]:
    """A player's optimizer fields: config.optimizer, overridden by its player_optimizers."""
    own = {**config.player_optimizers.get(player, {})}
    own.pop(HEADS, None)
    for field in own:
        look_up(config.optimizer, field, f"player_optimizers.{player}")
    return {**config.optimizer, **own}


def head_fields(config: ConfigDict, player: str, network: Network) -> dict[str, dict[str, Any]]:
    """By head of a player's network, the optimizer fields that differ from the player's.

    Raises ValueError for a head or a field that does not exist.
    """
    heads = config.player_optimizers.get(player, {}).get(HEADS, {})
    table = {head.name: head for head in network.heads}
    if heads and not table:
        raise ValueError(
            f"the network of {player} has no heads; leave player_optimizers.{player}.{HEADS} unset"
        )
    for head, own in heads.items():
        look_up(table, head, f"player_optimizers.{player}.{HEADS}")
        for field in own:
            look_up(dict.fromkeys(HEAD_FIELDS), field, f"player_optimizers.{player}.{HEADS}.{head}")
            if field in TABLES:
                look_up(TABLES[field], own[field], f"optimizer.{field}")
    return {head: {**own} for head, own in heads.items()}


def build_optimizers(
    config: ConfigDict, objective: Objective, lengths: Sequence[Length] = ()
) -> dict[str, Optimizer]:
    """The optimizer of each player. lengths: as for `build`."""
    steps = lengths[0].steps if lengths else config.steps
    for player in config.player_optimizers:
        look_up(objective.players, player, "player_optimizers")
    optimizers = {}
    for name, player in objective.players.items():
        fields = optimizer_fields(config, name)
        for field, table in TABLES.items():
            look_up(table, fields[field], f"optimizer.{field}")
        count = partial(count_updates, player.every)
        updates, *starts = map(count, (steps, *(stage.start for stage in objective.stages)))
        optimizers[name] = build_optimizer(
            **fields,
            updates=updates,
            starts=starts,
            heads=head_fields(config, name, player.network),
            continued=[
                Continuation(count(start), count(end), schedule, scale)
                for start, end, schedule, scale in lengths[1:]
            ],
        )
    return optimizers


def count_updates(every: int, steps: int) -> int:
    """The updates in `steps` training steps of a player that is updated in every `every`-th."""
    return -(-steps // every)
