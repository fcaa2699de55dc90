"""A teacher from the folder of any run: its parameters, checked against the student's config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from objectives.base import Params
from training import checkpoint, workdir
from training.experiment import Experiment, build
from training.sharding import tree_shardings
from training.state import named_key

TEACHER = "teacher"
# What must agree, or the teacher's parameters mean another function.
SHARED = ("model.", "path.", "prediction.", "data.image_size", "data.channels", "data.num_classes")
# Parts of a network that do not change what its other parameters mean.
FREE = ("model.dropout", "model.dtype", "model.remat", "model.guidance_input", "model.loss_weight")


class Location(NamedTuple):
    """Where a teacher lies: a run's folder and a step, the newest if None."""

    folder: Path
    step: int | None


def locate(field: str) -> Location:
    """WORKDIR[@STEP] taken apart. Raises ValueError if there is no run."""
    match = re.fullmatch(r"(.*?)(?:@(\d+))?", field)
    folder = Path(match[1]).expanduser()
    if not (folder / workdir.CONFIG).is_file():
        raise ValueError(
            f"teacher={field}: {folder} is no run; give the --workdir of one as WORKDIR or "
            "WORKDIR@STEP"
        )
    return Location(folder, int(match[2]) if match[2] else None)


def pinned(config: ConfigDict) -> ConfigDict:
    """The config with its teacher's step written out: a resumed run must not get a later one.

    Raises ValueError if there is no such run or step.
    """
    if not config.teacher:
        return config
    folder, step = locate(config.teacher)
    config = ConfigDict(config)
    config.teacher = f"{folder}@{checkpoint.saved_step(folder, step)}"
    return config


def check_teacher(config: ConfigDict, teacher: ConfigDict, experiment: Experiment) -> None:
    """Raises ValueError if a run with the config `teacher` cannot teach one with `config`."""
    own, other = workdir.flat(workdir.as_dict(config)), workdir.flat(workdir.as_dict(teacher))
    differing = [
        f"{name} ({other.get(name)} there, {own.get(name)} here)"
        for name in sorted(own.keys() | other.keys())
        if name.startswith(SHARED) and name not in FREE and own.get(name) != other.get(name)
    ]
    if differing:
        raise ValueError(
            f"teacher={config.teacher} is another model than this one: {'; '.join(differing)}. Set "
            "these fields to the teacher's, or train a teacher with them"
        )
    taught = build(teacher)
    if experiment.objective.frozen and not taught.objective.denoises:
        raise ValueError(
            f"teacher={config.teacher} was trained by {teacher.method}, which does not predict "
            "data and noise at every time; use a run of flow_matching, edm, ddpm or trigflow"
        )
    fields = config.objective
    guided = fields.get("guidance_scale", 1.0) != 1.0 or bool(fields.get("guidance_range"))
    if experiment.objective.frozen and guided and not taught.guidable:
        raise ValueError(
            f"teacher={config.teacher} does not know the null class, which guidance needs; train "
            "one with objective.label_dropout above 0, or use objective.guidance_scale=1"
        )


def load_teacher(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> dict[str, Params]:
    """{"teacher": parameters} of config.teacher, {} without one, sharded as the state will be.

    The network that samples there (its average by default) is taken. Parts that this network has
    and the teacher's has not, such as the input of the guidance scale, are new and without effect;
    parts that only the teacher has are left out. Raises ValueError, before any compile, if the
    teacher is missing, cannot be read, or is another model.
    """
    if not config.teacher:
        if experiment.objective.frozen:
            raise ValueError(
                f"{config.method} needs a teacher: --config.teacher=WORKDIR of a run of the same "
                "model and path"
            )
        return {}
    location = locate(config.teacher)
    teacher_config = workdir.load_config(location.folder)
    check_teacher(config, teacher_config, experiment)
    teacher = build(teacher_config)
    abstract = abstract_params(teacher, mesh)
    params, _ = checkpoint.restore_network(
        location.folder, teacher.sample_with, abstract, location.step
    )
    return {TEACHER: adopt(params, experiment, config.seed, mesh)}


def abstract_params(experiment: Experiment, mesh: Mesh) -> Params:
    """Shapes and shardings of the generator's parameters."""
    player = experiment.objective.players[experiment.objective.generator]
    shapes = jax.eval_shape(player.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def adopt(params: Params, experiment: Experiment, seed: int, mesh: Mesh) -> Params:
    """The parameters as those of this experiment's network: its own parts where they have none."""
    objective = experiment.objective
    init = objective.players[objective.generator].init
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(experiment, mesh))
    fresh = jax.jit(init, out_shardings=shardings)(named_key(jax.random.key(seed), TEACHER))
    return merge(fresh, params)


def merge(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with every part that `given` has, taken from there."""
    return {
        name: merge(part, given[name])
        if isinstance(part, Mapping) and name in given
        else given.get(name, part)
        for name, part in own.items()
    }
