"""What a student takes from its teacher: the fields that must agree, and the teacher's data.

A field that the user sets keeps its value, which must then agree. All other fields of these groups
are the teacher's, whatever the config file sets: `sim` with a flow_matching teacher is on the
linear path and predicts velocity.
"""

from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from fewstep.data import NONE, space_of
from fewstep.messages import Difference, differences
from fewstep.training.experiment import Experiment
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.teacher import FREE, disagreements
from fewstep.training.teacher_scales import accepted_scales

GROUPS = ("data", "codec", "model", "path", "prediction")
# Fields of these groups that stay the student's: what its method needs of the network, how the
# labels of its samples are drawn, and where a host keeps the data.
OWN = ("model.second_time", "model.guidance_input", "model.guidance_interval", "model.loss_weight")
OWN += ("model.trajectory",)
OWN += ("data.label_shares", "data.local_dir", "data.on_device")
# How a network computes and is regularized is the student's too. Where a codec lies is not: the
# student has no other.
COMPUTED = tuple(field for field in FREE if field.startswith("model."))
GRID = "spacing"  # field of objectives; the name "" stands for the spacing of the teacher
RANGE = "guidance_range"
SCALES = (RANGE, "guidance_scale")
OPEN = (None, "", 0, -1)  # values of fields that a config leaves open


def inherit(config: ConfigDict, source: ConfigDict, given: Collection[str] = ()) -> ConfigDict:
    """The config of a student, with the fields that it takes from `source`.

    source: the teacher's recorded config, or that of the student itself if it has begun. given:
    dotted names of the fields and groups that keep their values.
    """
    config = config.copy_and_resolve_references()
    # What a config sets of how its network computes and is regularized means no other network.
    same_network = source.model.name == config.model.name or is_given("model.name", given)
    own = (*OWN, *COMPUTED) if same_network else OWN
    with config.unlocked(), config.ignore_type():
        for group in GROUPS:
            unset = {} if same_network or group != "model" else dict.fromkeys(config.model)
            for field, value in {**unset, **source[group]}.items():
                name = f"{group}.{field}"
                if name not in own and not is_given(name, given):
                    config[group][field] = value
    if takes_grid(config, source, given):
        config.objective[GRID].update(source.objective[GRID])
    return with_scales(config, accepted_scales(source), source, given)


def with_scales(
    config: ConfigDict, scales: Sequence[float], source: ConfigDict, given: Collection[str]
) -> ConfigDict:
    """The config of a student whose teacher takes guidance scales of this range, or ().

    A method that can take scales as an input takes those of the teacher, unless it has a range, or
    the user sets a scale. source, given: as for `inherit`.
    """
    config = config.copy_and_resolve_references()
    objective = config.objective
    asked = any(is_given(f"objective.{name}", given) for name in SCALES)
    with config.ignore_type():
        config.teacher_scales = tuple(scales)
        if scales and RANGE in objective and not objective[RANGE] and not asked:
            objective.update({name: source.objective[name] for name in SCALES})
    return config


def is_given(name: str, given: Collection[str]) -> bool:
    """Whether a field or a group that it is in was set by the user."""
    return any(name == one or name.startswith(f"{one}.") for one in given)


def takes_grid(config: ConfigDict, source: ConfigDict, given: Collection[str]) -> bool:
    """Whether a student leaves the spacing of its times to its teacher."""
    own, other = config.objective.get(GRID), source.objective.get(GRID)
    left_open = own is not None and not own.name and not is_given(f"objective.{GRID}.name", given)
    return left_open and other is not None


def inherited_fields(before: ConfigDict, after: ConfigDict) -> list[Difference]:
    """The fields, with the values of the config and of the teacher, that inheritance changed."""
    return differences(*(flatten_fields(as_dict(config)) for config in (before, after)))


def describe_inherited(found: Collection[Difference]) -> str:
    """The inherited fields in words; says what the config has where it sets a field."""
    return ", ".join(
        f"{name}={value}" + (f" (not {own})" if is_set(own) else "") for name, own, value in found
    )


def is_set(value: object) -> bool:
    """Whether a config sets a field to this value, and does not leave it open."""
    return value is False or value not in OPEN


def check_given(config: ConfigDict, teacher: ConfigDict, given: Collection[str]) -> None:
    """Raises ValueError that names the fields in which the user contradicts the teacher."""
    if config.data.name == NONE and not space_of(teacher.data.name).image:
        made = space_of(teacher.data.name).name
        raise ValueError(
            f"teacher={config.teacher} makes {made}, no images; set data.name={teacher.data.name} "
            f"instead of {NONE}"
        )
    found = [
        f"--config.{name}={here} (the teacher has {there})"
        for name, there, here in disagreements(teacher, config)
        if is_given(name, given)
    ]
    if found:
        raise ValueError(
            f"teacher={config.teacher} does not agree with {', '.join(found)}; leave the flag out, "
            "or name a teacher with that value"
        )


def check_own_path(own: ConfigDict, config: ConfigDict, experiment: Experiment) -> None:
    """Raises ValueError for a method that is another one on the path that it would inherit.

    own: the config before it inherited. Denoising methods differ in path and prediction alone.
    """
    before, after = (f"{c.prediction.kind} on the {c.path.name} path" for c in (own, config))
    if experiment.objective.denoises and before != after:
        raise ValueError(
            f"teacher={config.teacher} predicts {after}, and {config.method} trains {before}"
        )
