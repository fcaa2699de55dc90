"""A network to export, and what a format makes of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep.data import path_in_name
from fewstep.models.dit import SIZES
from fewstep.training.codec_weights import Known
from fewstep.training.experiment import Experiment
from fewstep.training.storage.identity import Identity
from fewstep.weights.layouts.dit import Sizes


class Exported(NamedTuple):
    """A network of a run.

    experiment: of the config; its `sample_with` names the network. params: on the host, float32,
    with the blocks apart. identity: of the run. codec: parameters of its codec, None without one.
    class_names: () if no record has them. sampling_steps: those asked for; () leaves them to the
    format. guidance_scale: that asked for, else the run's own. guidance_asked: whether it was.
    runtime: folder of onnxruntime-web, for a page.
    """

    config: ConfigDict
    experiment: Experiment
    params: Mapping[str, Any]
    step: int
    identity: Identity
    codec: Known | None
    class_names: tuple[str, ...] = ()
    sampling_steps: tuple[int, ...] = ()
    guidance_scale: float = 1.0
    guidance_asked: bool = False
    runtime: Path | None = None


class Contents(NamedTuple):
    """Files by their path in the folder, each a function that writes it.

    loading: how to load them, as Markdown. left_out: sentences on what the run has and they do not.
    """

    files: Mapping[str, Callable[[Path], None]]
    loading: str
    left_out: tuple[str, ...] = ()


def data_name(exported: Exported) -> str:
    """The name of the data that a run was trained on, without the place of a folder."""
    name = exported.config.data.name
    return "images of a folder" if path_in_name(name) else name


def dit_sizes(exported: Exported) -> Sizes:
    """The sizes of a DiT."""
    config, shape = exported.config, exported.experiment.space.shape
    width, depth, _ = SIZES[config.model.size]
    patch = config.model.patch_size
    return Sizes(width, depth, patch, shape[-1], config.data.num_classes, shape[0] // patch)


def check_fields(exported: Exported, form: str, expected: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError unless the fields of the config have values that a format can express.

    expected: the possible values of each field, by dotted name.
    """
    config, found = exported.config, []
    for name, values in expected.items():
        group, _, field = name.rpartition(".")
        value = config[group].get(field)
        if value not in values:
            known = " or ".join(map(str, values))
            found.append(f"{name}={value} (it has {known})")
    if found:
        raise ValueError(
            f"--format={form} cannot express {', '.join(found)}; use --format=safetensors, which "
            "expresses every run"
        )
