"""The runs of a comparison as cells: a method, the values of swept fields, and a seed.

`--sweep='optimizer.learning_rate=1e-4,3e-4;seed=0,1'` stands for the product of these values, for
each method. A teacher has those of the swept fields that its students inherit from it, and so is
shared by all cells that agree in them and in the seed.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from fewstep.configs import command_line, overrides
from fewstep.configs.fields import field_names, unknown_field_message
from fewstep.eval.report.folders import comparison_run
from fewstep.modes.mode import parse_integer
from fewstep.modes.request import Request, checked
from fewstep.training.cost.choice import field_value
from fewstep.training.inheritance import COMPUTED, GROUPS, OWN
from fewstep.training.storage.identity import CHANGEABLE

SEED = "seed"
EXAMPLE = "--sweep='optimizer.learning_rate=1e-4,3e-4;seed=0,1'"
# Fields and groups that decide what is compared, or how it is measured.
COMPARED = ("method", "teacher", "teacher_network", "teacher_scales", "debug", "debug_keeps")
COMPARED += ("data.", "codec.", "evaluate.")
# Of the fields that may change when a run continues, those that change its results.
LEARNED = ("steps", "ema.sample_with")
COMMA = re.compile(r",(?![^(\[{]*[)\]}])")  # not within the brackets of a sequence
SLURM = "SLURM_ARRAY_TASK_"


class Cell(NamedTuple):
    """One run. values: (field, its value as text) for each swept field but the seed."""

    method: str
    seed: int
    values: tuple[tuple[str, str], ...] = ()


class Share(NamedTuple):
    """The cells of one process: every `count`-th one from the `index`-th, counted from 1."""

    index: int = 1
    count: int = 1


ALL = Share()


def parse_sweep(flag: str, given: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each field as text. Raises ValueError for an empty or doubled one."""
    axes: dict[str, tuple[str, ...]] = {}
    for part in given.split(";"):
        field, equals, values = map(str.strip, part.partition("="))
        texts = tuple(text.strip() for text in COMMA.split(values))
        if not field or not equals:
            raise ValueError(f"--{flag}={given} must be FIELD=VALUE,VALUE;..., as in {EXAMPLE}")
        if not all(texts):
            raise ValueError(f"--{flag}: {field}={values} has an empty value; remove it")
        if field in axes or len({*texts}) < len(texts):
            raise ValueError(f"--{flag}: {field} or one of its values is there twice; remove one")
        axes[field] = texts
    return axes


def parse_share(flag: str, given: str) -> Share:
    """Return the share of a text such as 3/8. Raises ValueError."""
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--{flag}={given} must be a share from 1/N to N/N, such as 3/8")
    return Share(int(found[1]), int(found[2]))


def choose_share(request: Request, environment: Mapping[str, str]) -> Share:
    """Return the share of --cell, or that of a task of a Slurm array if fields are swept.

    Raises ValueError for an array whose numbers leave gaps.
    """
    if request.cell or not request.sweep or f"{SLURM}ID" not in environment:
        return Share(*request.cell)
    own, count = (int(environment[SLURM + name]) for name in ("ID", "COUNT"))
    first, last = (int(environment.get(SLURM + name, own)) for name in ("MIN", "MAX"))
    if last - first + 1 != count:
        raise ValueError(
            f"the Slurm array has {count} tasks from {first} to {last}, so its numbers leave gaps; "
            "submit --array=1-N, or give each task its share by --cell=1/N"
        )
    return Share(own - first + 1, count)


def check_sweep(request: Request) -> None:
    """Raises ValueError for a field that cannot be swept."""
    for field in request.sweep:
        if is_among(field, COMPARED):
            raise ValueError(
                f"--sweep: {field} decides what is compared, or how; set it for all runs, as in "
                f"--config.{field}"
            )
        if is_among(field, CHANGEABLE) and field not in LEARNED:
            raise ValueError(f"--sweep: {field} does not change what a run learns; leave it out")
    if SEED in request.sweep and request.seeds:
        raise ValueError(f"--sweep: {SEED} is in --seeds too; leave one of them out")


def is_among(field: str, names: Sequence[str]) -> bool:
    """Whether the names have a field, or its group; names of groups end in a point."""
    return field in names or f"{field.partition('.')[0]}." in names


def asked_cells(request: Request) -> list[Cell]:
    """Return the cells of the methods that the user compares; methods first, then values, seeds."""
    axes = {field: texts for field, texts in request.sweep.items() if field != SEED}
    values = [tuple(zip(axes, texts, strict=True)) for texts in product(*axes.values())]
    seeds = request.seeds or (request.config.seed,)
    if SEED in request.sweep:
        seeds = [parse_integer(f"sweep={SEED}", text) for text in request.sweep[SEED]]
    found = (
        Cell(method, seed, own) for method in request.methods for own in values for seed in seeds
    )
    return list(dict.fromkeys(found))


def teacher_of(cell: Cell, teachers: Mapping[str, str]) -> Cell:
    """Return the cell of a student's teacher."""
    values = tuple((field, text) for field, text in cell.values if is_inherited(field))
    return Cell(teachers[cell.method], cell.seed, values)


def is_inherited(field: str) -> bool:
    """Whether a student takes a field from its teacher."""
    return field.partition(".")[0] in GROUPS and field not in (*OWN, *COMPUTED)


def needed_cells(cell: Cell, teachers: Mapping[str, str]) -> list[Cell]:
    """Return the teachers that a cell needs, the first one first, and the cell."""
    above = needed_cells(teacher_of(cell, teachers), teachers) if cell.method in teachers else []
    return [*above, cell]


def own_cells(asked: Sequence[Cell], teachers: Mapping[str, str], share: Share) -> set[Cell]:
    """Return the cells that a process trains: its share, and teachers that no other share needs."""
    mine = asked[share.index - 1 :: share.count]
    others = {needed for cell in {*asked} - {*mine} for needed in needed_cells(cell, teachers)}
    exclusive = {needed for cell in mine for needed in needed_cells(cell, teachers)} - others
    return {*mine} | exclusive


def add_teachers(methods: Sequence[str], teachers: Mapping[str, str]) -> list[str]:
    """Return the methods and their teachers, each once, teachers before students."""
    found: dict[str, None] = {}
    for method in methods:
        if method in teachers:
            found |= dict.fromkeys(add_teachers([teachers[method]], teachers))
        found[method] = None
    return list(found)


def configure_runs(
    root: Path, request: Request, share: Share
) -> tuple[dict[Path, ConfigDict], set[Path]]:
    """Return the configs of all runs by folder, and the folders of the runs of a share."""
    asked, teachers = asked_cells(request), request.teachers
    order = add_teachers(request.methods, teachers)
    needed = dict.fromkeys(one for cell in asked for one in needed_cells(cell, teachers))
    folders: dict[Cell, Path] = {}
    configs: dict[Path, ConfigDict] = {}
    for cell in sorted(needed, key=lambda cell: order.index(cell.method)):
        config = configure(cell, request)
        folder = comparison_run(root, cell.method, cell.seed, cell_name(config, cell))
        if folder in configs:
            raise ValueError(f"--sweep has two values of the same meaning: {folder}; remove one")
        if cell.method in teachers:
            config.teacher = str(folders[teacher_of(cell, teachers)])
        else:
            config.teacher_network = ""  # --config gives it for the students
        folders[cell], configs[folder] = folder, config
    return configs, {folders[cell] for cell in own_cells(asked, teachers, share)}


def configure(cell: Cell, request: Request) -> ConfigDict:
    """Return the config of a cell, with --config.FIELD and then its values. Raises ValueError."""
    config = request.config_of_method(cell.method)
    if cell.values:
        config = with_texts(config, cell, request.given or ())
    config.seed = cell.seed
    return checked(config) if request.sweep else config


def with_texts(config: ConfigDict, cell: Cell, kept: Sequence[str]) -> ConfigDict:
    """Return a config with the values of a cell, read as those of --config.FIELD=VALUE.

    kept: fields that the command line sets. They stay if a value replaces the part that they
    belong to. Raises ValueError for an unknown field or a value of another type.
    """
    command = [sys.argv[0], *(f"--config.{field}={text}" for field, text in cell.values)]
    fields, values = dict(cell.values), flags.FlagValues()
    unknown = unknown_field_message(config, command[1:])
    if unknown:
        raise ValueError(f"{cell.method}: {unknown}".replace("--config.", "--sweep="))
    before = {field: field_value(config, field) for field in (*kept, *fields)}
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
        values(command)
    except command_line.ERRORS as error:
        message = command_line.explain_value(error).replace("--config.", "--sweep=")
        raise ValueError(message) from error
    config = values["config"].value
    given = {field: field_value(config, field) for field in before}
    overrides.forget_replaced(config, given, {**given, **{f: before[f] for f in fields}})
    if config.debug:
        config.debug_keeps = (*config.debug_keeps, *fields)
    return config


def cell_name(config: ConfigDict, cell: Cell) -> str:
    """Return the name of a cell's folder, such as learning_rate_0.0003+batch_size_64; "" without.

    A field goes by the last part of its name, unless another field of the config shares that.
    """
    names = [*field_names(config.to_dict())]
    lasts = [name.rpartition(".")[2] for name in names]
    parts = []
    for field in sorted(dict(cell.values)):
        last = field.rpartition(".")[2]
        value = re.sub(r"[^\w.-]+", "_", str(field_value(config, field))).strip("_")
        parts.append(f"{field if lasts.count(last) > 1 else last}_{value}")
    return "+".join(parts)
