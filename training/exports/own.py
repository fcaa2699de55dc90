"""Our own layout of an exported network: names that are paths, and a record of its run.

network.safetensors, network.npz   parameters by path, such as block_0/attention/qkv/kernel
codec.safetensors                  those of the run's codec, if it has one
config.json                        the record, sealed: run, step, network, config, fingerprint

An import of these files gives a run whose samples are the same bits. The record has no place on a
disk: folders, files and the teacher of the run are left out of its config.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.data import NONE, path_in_name
from fewstep.files import read_npz, replaced, write_json
from fewstep.messages import shell_flags
from fewstep.training.exports.exported import Contents, Exported
from fewstep.training.storage.fields import is_whole
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.storage.identity import as_dict, flatten_fields, is_counts, with_all_fields
from fewstep.training.storage.record import parse_config
from fewstep.training.storage.seal import seal_record, unseal_record
from fewstep.weights.layouts.names import flatten, nested
from fewstep.weights.safetensors import write_safetensors
from fewstep.weights.tensors import read_tensors

LAYOUT = "fewstep"
RECORD, CODEC = "config.json", "codec.safetensors"
NETWORKS = ("network.safetensors", "network.npz")
FORMAT = 1  # of the record
# Fields for places, and their defaults; beside them are the weights of an objective's distances.
PLACES = {
    "compilation_cache": "",
    "teacher": "",
    "teacher_network": "",
    "data.dir": "",
    "data.local_dir": "",
    "codec.weights": "",
    "evaluate.weights": "",
}
REFERENCES = ("train", "test", "all")
# An imported run has one network, without averages.
WITHOUT_AVERAGES = {"ema.decays": (), "ema.power_stds": (), "ema.sample_with": ""}


def own_contents(exported: Exported, network: str) -> Contents:
    """The files of our own layout. network: one of NETWORKS."""
    write = save_npz if network.endswith(".npz") else save_safetensors
    files = {
        network: partial(write, tensors=flatten(exported.params)),
        RECORD: partial(write_json, content=seal_record(record_of(exported))),
    }
    if exported.codec is not None:
        files[CODEC] = partial(save_safetensors, tensors=flatten(exported.codec.params))
    return Contents(files, loading(network))


def record_of(exported: Exported) -> dict[str, Any]:
    """What the import must know, as plain JSON values."""
    identity = exported.identity
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "run": identity.id,
        "step": exported.step,
        "network": exported.experiment.sample_with,
        "config": as_dict(config_without_places(exported.config)),
        "class_counts": identity.class_counts,
        "fingerprint": fingerprint(exported.params),
    }


def config_without_places(config: ConfigDict) -> ConfigDict:
    """The config of a run of the network alone, which names no place on a disk."""
    config = config.copy_and_resolve_references()
    fields = flatten_fields(as_dict(config.objective))
    files = [f"objective.{name}" for name in fields if name.endswith(".weights")]
    config.update_from_flattened_dict(PLACES | WITHOUT_AVERAGES | dict.fromkeys(files))
    if path_in_name(config.data.name):
        config.data.name = NONE
    if config.evaluate.reference not in REFERENCES:
        config.evaluate.reference = REFERENCES[0]
    return config


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write safetensors whole or not at all."""
    with replaced(path) as file:
        write_safetensors(file, tensors)


def save_npz(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file, which is not compressed, whole or not at all."""
    with replaced(path) as file:
        np.savez(file, **tensors)


def loading(network: str) -> str:
    """How to load our own layout, as Markdown."""
    command = shell_flags("import", weights="FOLDER", workdir="runs/imported")
    read = (
        'dict(np.load("network.npz"))'
        if network.endswith(".npz")
        else 'safetensors.numpy.load_file("network.safetensors")'
    )
    return (
        f"With Fewstep, FOLDER being this folder:\n\n```\npython main.py {command}\n```\n\n"
        "The new run has one network, without averages and states of optimizers. In Python, "
        f"`{read}` gives the parameters by path. Matrices are [in, out]."
    )


class OwnNetwork(NamedTuple):
    """A network in our own layout. file: its parameters. codec: the file of its codec, or None."""

    file: Path
    params: dict[str, Any]
    config: ConfigDict
    step: int
    class_counts: list[int] | None
    codec: Path | None


def find_own(weights: Path) -> Path | None:
    """The file of parameters that a folder or path of our own layout means; None for others."""
    folder = weights if weights.is_dir() else weights.parent
    names = NETWORKS if weights.is_dir() else (weights.name,)
    found = [folder / name for name in names if name in NETWORKS and (folder / name).is_file()]
    return found[0] if found and (folder / RECORD).is_file() else None


def read_own(file: Path) -> OwnNetwork:
    """The network in a file of our own layout, with the record beside it.

    Raises ValueError that names the file that is damaged, or not what was written.
    """
    record, remedy = read_record(file.with_name(RECORD)), "export the run again"
    tensors = read_npz(file, remedy) if file.suffix == ".npz" else read_tensors(file)
    params = nested(tensors)
    if fingerprint(params) != record["fingerprint"]:
        raise ValueError(f"{file} is not what was exported with {RECORD} beside it; {remedy}")
    codec = file.with_name(CODEC)
    return OwnNetwork(
        file,
        params,
        with_all_fields(record["config"]),
        record["step"],
        record["class_counts"],
        codec.absolute() if codec.is_file() else None,
    )


def read_record(path: Path) -> dict[str, Any]:
    """The record of an exported network. Raises ValueError that names the file."""
    try:
        record = unseal_record(json.loads(path.read_bytes()))
        if record["format"] != FORMAT:
            raise ValueError(
                f"it has the format {record['format']}, and this version reads {FORMAT}"
            )
        parse_config(record["config"])
        counts = record["class_counts"]
        if not is_whole(record["step"]) or not (counts is None or is_counts(counts)):
            raise ValueError("a field has the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was written ({error}); export the run again"
        ) from error
    return record
