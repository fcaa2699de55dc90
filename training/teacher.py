"""Loads a teacher from the folder of any run, and checks that it can teach the student."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data.spaces.space import Space
from fewstep.diffusion.path import default_fields
from fewstep.diffusion.prediction import SIGMA_DATA
from fewstep.messages import Difference, differences
from fewstep.models.conditioning import silent_outputs
from fewstep.models.network import Network
from fewstep.models.user_sampler import is_sampler_file
from fewstep.objectives.base import Key, Objective, Params
from fewstep.training.densities import check_same_density
from fewstep.training.experiment import Experiment, rebuild, with_sampling_network
from fewstep.training.location import locate_teacher
from fewstep.training.networks import with_network_fields
from fewstep.training.pairs import check_sampler
from fewstep.training.sharding import with_shardings
from fewstep.training.sources import SAMPLED_TEACHER, TEACHER, reads_teacher, teacher_sources
from fewstep.training.state import named_key, replace_parts
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.checkpoint import run_in_record
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.teacher_file import (
    file_identity,
    file_params,
    read_teacher_file,
    sampled_experiment,
)
from fewstep.training.teacher_scales import at_one_scale, check_scales
from fewstep.training.trees import leaves_by_path, put_leaves

# Fields that must agree; otherwise the teacher's parameters would mean another function.
SHARED = ("model.", "path.", "prediction.", "data.image_size", "data.channels", "data.num_classes")
SHARED += ("codec.",)
# Fields of a network that do not change what its other parameters mean.
FREE = (
    "model.dropout",
    "model.dtype",
    "model.attention",
    "model.adaln_zero",
    "model.remat",
    "model.guidance_input",
    "model.guidance_interval",
    "model.trajectory",
    "model.loss_weight",
    "codec.weights",
)


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """Fields that must agree between a teacher and its student, by dotted name."""
    fields = flatten_fields(as_dict(with_network_fields(config)))
    # A default, and the same value set in a config, are the same path and the same prediction.
    fields |= {
        f"path.{name}": value
        for name, value in default_fields(config.path.name).items()
        if fields.get(f"path.{name}") is None
    }
    if config.prediction.kind == "F" and config.prediction.sigma_data is None:
        fields["prediction.sigma_data"] = SIGMA_DATA
    return {name: value for name, value in fields.items() if must_agree(name)}


def disagreements(teacher: ConfigDict, config: ConfigDict) -> list[Difference]:
    """The fields in which a teacher and its student differ and must not.

    The fingerprint of a codec is unknown until its parameters were read, as those of an imported
    network may never be.
    """
    unknown = "" in (teacher.codec.fingerprint, config.codec.fingerprint)
    return [
        found
        for found in differences(shared_fields(teacher), shared_fields(config))
        if not (unknown and found.field == "codec.fingerprint")
    ]


def must_agree(field: str) -> bool:
    """Whether a teacher and its student must have the same value of a field."""
    return field.startswith(SHARED) and field not in FREE


def check_teacher(config: ConfigDict, teacher: ConfigDict, experiment: Experiment) -> None:
    """Raises ValueError if a run of the config `teacher` cannot teach one of `config`.

    A network whose losses read the teacher may have a second time beside the teacher's inputs; the
    teacher's parameters ignore it (`adopt`).
    """
    taught = rebuild(teacher, f"teacher={config.teacher}")
    found = [
        f"{name} ({there} there, {here} here)"
        for name, there, here in sorted(disagreements(teacher, config))
        if not (name == "model.second_time" and there == "none" and experiment.objective.frozen)
    ]
    if not found and taught.space.shape != experiment.space.shape:
        found = [
            f"data ({describe_space(taught.space)} there, {describe_space(experiment.space)} here)"
        ]
    predicts = experiment.objective.frozen or only_starts_from_teacher(experiment.objective)
    if predicts and not taught.objective.denoises:
        raise ValueError(
            f"teacher={config.teacher} was trained by {teacher.method}, which does not predict "
            "data and noise at every time; use a run of flow_matching, edm, ddpm, trigflow, "
            "guidance, genie, reflow, dis or dds"
        )
    if found:
        raise ValueError(
            f"teacher={config.teacher} is another model than this one: {'; '.join(found)}. Set "
            "these fields to the teacher's values, or train a teacher with this run's values"
        )
    check_scales(config, teacher, experiment)
    fields = config.objective
    guided = fields.get("guidance_scale", 1.0) != 1.0 or bool(fields.get("guidance_range"))
    # A teacher's own sampler may have learned its scale; losses evaluate the null class.
    knows = taught.guidable and ("label_dropout" in teacher.objective or not predicts)
    if experiment.objective.needs_teacher and guided and not (knows or config.teacher_scales):
        raise ValueError(
            f"teacher={config.teacher} does not know the null class, which guidance needs; train "
            "one with objective.label_dropout above 0, or use objective.guidance_scale=1"
        )


def describe_space(space: Space) -> str:
    """A space and its shape, such as "pixels of 8 x 8 x 1"."""
    return f"{space.name} of {' x '.join(map(str, space.shape))}"


def load_teacher_config(config: ConfigDict, experiment: Experiment) -> ConfigDict | None:
    """The teacher's config, None without a teacher, and for a sampler in a file.

    Its ema.sample_with becomes config.teacher_network, if that is set. Raises ValueError if the
    teacher is missing or cannot teach this run.
    """
    if not config.teacher:
        check_teacher_given(config, experiment)
        return None
    if is_sampler_file(config.teacher):
        read_teacher_file(config, experiment)  # raises its errors
        return None
    folder = locate_teacher(config.teacher).folder
    teacher = workdir.load_config(folder)
    if config.teacher_network:
        run = f"teacher={config.teacher}"
        teacher = with_sampling_network(teacher, run, config.teacher_network, "teacher_network")
    check_teacher(config, teacher, experiment)
    recorded = workdir.recorded_identity(folder)
    check_same_density(config.teacher, recorded, experiment.model.density)
    return teacher


def build_source_teacher(config: ConfigDict, experiment: Experiment) -> Experiment | None:
    """The experiment of the teacher that sources draw from; None if no source needs one.

    Raises ValueError as `load_teacher_config` does.
    """
    if not teacher_sources(experiment.objective):
        return None
    teacher = load_teacher_config(config, experiment)
    return sampled_experiment(experiment) if teacher is None else rebuild(teacher, config.teacher)


def check_teacher_given(config: ConfigDict, experiment: Experiment) -> None:
    """Raises ValueError if the method needs a teacher and the config has none."""
    check_teacher_network(config)
    if experiment.objective.needs_teacher and not config.teacher:
        raise ValueError(
            f"{config.method} needs a teacher; set --config.teacher=WORKDIR to the folder of a run "
            "of the same model and path"
        )
    if only_starts_from_teacher(experiment.objective) and not config.start_from_teacher:
        raise ValueError(
            f"{config.method} learns from its teacher only by starting from it; leave "
            "start_from_teacher=True"
        )


def only_starts_from_teacher(objective: Objective) -> bool:
    """Whether starting from the teacher is the only use that a method makes of it."""
    return objective.needs_teacher and not (objective.frozen or teacher_sources(objective))


def check_teacher_network(config: ConfigDict) -> None:
    """Raises ValueError if the config sets teacher_network without teacher."""
    if config.teacher_network and not config.teacher:
        raise ValueError(
            f"teacher_network={config.teacher_network} is not used without teacher; leave it unset"
        )


def teacher_identity(config: ConfigDict, experiment: Experiment) -> dict[str, Any] | None:
    """Run, step, network and fingerprint of what teaches; None if the run reads no teacher.

    Raises ValueError as `load_teacher` does.
    """
    check_teacher_given(config, experiment)
    if not reads_teacher(experiment.objective):
        return None
    if is_sampler_file(config.teacher):
        return file_identity(read_teacher_file(config, experiment))
    teacher = load_teacher_config(config, experiment)
    if teacher is None:
        return None
    location, name = locate_teacher(config.teacher), rebuild(teacher, config.teacher).sample_with
    record = restore.read_record(location.folder, location.step)
    return {
        "run": run_in_record(record).id,
        "step": record["step"],
        "network": name,
        "fingerprint": record["fingerprints"].get(name),
    }


def load_teacher(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> dict[str, Params]:
    """Parameters of config.teacher by name, sharded like the state; {} without a teacher.

    "teacher" has the parts of the student's network: `adopt`, and `at_one_scale` for a teacher that
    takes the guidance scale as an input. "sampled_teacher", for the sources, is as it is. Reads
    config.teacher_network, by default what samples in the teacher's run. Raises ValueError, before
    any compilation, if it is missing, cannot be read, is another model, or cannot make the pairs.
    """
    check_teacher_given(config, experiment)
    if not reads_teacher(experiment.objective):
        return {}
    if is_sampler_file(config.teacher):
        return file_params(read_teacher_file(config, experiment), experiment, mesh)
    teacher_config = load_teacher_config(config, experiment)
    if teacher_config is None:
        return {}
    location = locate_teacher(config.teacher)
    teacher = rebuild(teacher_config, config.teacher)
    objective = teacher.objective
    abstract = abstract_params(objective.players[objective.generator].network, mesh)
    sources = teacher_sources(experiment.objective)
    if sources:
        step = restore.saved_step(location.folder, location.step)
        scale = experiment.objective.guidance_scale
        check_sampler(config.teacher, teacher, abstract, step, config.pairs.steps, scale)
    params, _ = restore.restore_network(
        location.folder, teacher.sample_with, abstract, location.step
    )
    own = at_one_scale(params, config, experiment, mesh)
    frozen = {TEACHER: adopt(own, experiment.model.network, config.seed, mesh)}
    return frozen | ({SAMPLED_TEACHER: params} if sources else {})


def abstract_params(network: Network, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of a network's parameters."""
    return with_shardings(jax.eval_shape(network.init, jax.random.key(0)), mesh)


def adopt(params: Params, network: Network, seed: int, mesh: Mesh) -> Params:
    """The parameters for this network, without parts that only they have.

    Parts that they lack are initialized, and inputs that they lack have no effect.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(network, mesh))

    def init(key: Key) -> Params:
        fresh = network.init(key)
        leaves = leaves_by_path(fresh)
        silent = silent_outputs(leaves.keys() - leaves_by_path(params).keys())
        return put_leaves(fresh, {path: jnp.zeros_like(leaves[path]) for path in silent})

    fresh = jax.jit(init, out_shardings=shardings)(named_key(jax.random.key(seed), TEACHER))
    return replace_parts(fresh, params)
