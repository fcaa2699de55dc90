"""What a run's folder says of itself: config.json and environment.json."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from training.files import write_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
# Fields that may change when a run is continued; all others would make it another run.
CHANGEABLE = (
    "steps",
    "log.",
    "evaluate.",
    "checkpoint.",
    "mesh.",
    "model.attention",
    "ema.sample_with",
    "data.dir",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def start_run(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and record the config and the environment, or check against the record.

    Raises ValueError if the folder holds a run whose config differs in more than `CHANGEABLE`.
    """
    if (workdir / CONFIG).exists():
        check_same_run(load_config(workdir), config, workdir)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, as_dict(config))
        write_json(workdir / ENVIRONMENT, environment())


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run. Raises ValueError if the folder holds none."""
    path = workdir / CONFIG
    if not path.exists():
        raise ValueError(f"{path} does not exist: {workdir} is no run; train there first")
    try:
        return ConfigDict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    fields = {}
    for name, value in tree.items():
        fields |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return fields


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError that lists the fields in which a config differs from the run's own."""
    old, new = flat(as_dict(saved)), flat(as_dict(config))
    changeable = CHANGEABLE[1:] if depends_on_length(old) else CHANGEABLE
    differing = [
        f"{name} ({old.get(name)} there, {new.get(name)} now)"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(changeable)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}. Choose another "
            "--workdir or the run's own config"
        )


def depends_on_length(fields: dict[str, Any]) -> bool:
    """Whether what a run does at a step depends on how many it has; fields by dotted name.

    So it is with a schedule that ends at the last step, and with an objective whose grid or gap
    changes over the run.
    """
    curriculum = fields.get("objective.curriculum.name", "constant")
    return (
        fields.get("optimizer.schedule") != "constant"
        or (curriculum != "constant" and fields.get("objective.curriculum.total_steps") is None)
        or fields.get("objective.total_steps", 0) is None
    )


def environment() -> dict[str, Any]:
    """Versions, devices and the command line."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
    }
