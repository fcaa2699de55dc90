"""The card of an exported network: what it is, what it was trained on, its figures, how to load it.

Figures are those of the run's evaluations of the same network at the same step, each with its
protocol. There are none if it was not evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.data import short_hash
from fewstep.eval.metrics import METRICS
from fewstep.eval.report.evaluation import FOLDER, Evaluation, load_evaluations
from fewstep.eval.report.page import protocol_line
from fewstep.training.exports.exported import Contents, Exported, data_name
from fewstep.training.exports.own import config_without_places
from fewstep.training.networks import network_title
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.teacher import describe_space

# Groups and fields of the config that the card shows.
SHOWN = ("method", "seed", "steps", "batch_size", "data", "codec", "model", "path", "prediction")
SHOWN += ("objective", "optimizer", "ema")


def model_card(exported: Exported, contents: Contents, folder: Path) -> str:
    """The card as Markdown. folder: that of the run."""
    config = config_without_places(exported.config)
    fields = flatten_fields({name: as_dict(config)[name] for name in SHOWN})
    shown = {name: value for name, value in fields.items() if value not in (None, "", [])}
    left_out = [f"{text}." for text in contents.left_out if text]
    parts = [
        f"# {config.method}: {network_title(config)} on {data_name(exported)}",
        "\n".join(f"- {fact}" for fact in facts(exported)),
        "## How to load it",
        contents.loading,
        "## Figures",
        figures(evaluations_of(exported, folder)),
        *(["## Not in these files", *left_out] if left_out else []),
        "## Config",
        f"```json\n{json.dumps(shown, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def facts(exported: Exported) -> list[str]:
    """What the network is and what it was trained on, a line each."""
    config, experiment, identity = exported.config, exported.experiment, exported.identity
    model = experiment.model
    lines = [
        f"Network: {experiment.sample_with} after training step {exported.step} of {config.steps}, "
        f"run {identity.id or 'without an id'}",
        f"Method: {config.method}, on the {model.path.name} path, predicts {model.kind.name}",
        f"Examples: {describe_space(experiment.space)}, {experiment.num_classes} classes",
        f"Data: {data_text(exported)}",
    ]
    if config.codec.name:
        lines.append(f"Codec: {config.codec.name}, fingerprint {config.codec.fingerprint}")
    if identity.teacher:
        lines.append(f"Teacher: {sources_text(identity.teacher)}")
    if identity.started_from:
        lines.append(f"Started from: run {identity.started_from['id']}")
    if identity.imported:
        files = ", ".join(f"{name} ({hash})" for name, hash in identity.imported["files"].items())
        lines.append(f"Imported from: {files}, layout {identity.imported['layout']}")
    return lines


def data_text(exported: Exported) -> str:
    """Name and identity of the data that a run was trained on."""
    name, data = data_name(exported), exported.identity.data
    if data is None:
        return f"{name}, of which the run recorded no identity"
    counts = ", ".join(
        f"{split['count']:,} {label}" for label, split in data.get("splits", {}).items()
    )
    return f"{name}, identity {short_hash(data)}{f' ({counts})' if counts else ''}"


def sources_text(source: Mapping[str, Any]) -> str:
    """The run that taught, by what identifies it."""
    return ", ".join(f"{name} {value}" for name, value in source.items())


def evaluations_of(exported: Exported, folder: Path) -> list[Evaluation]:
    """The run's evaluations of the exported network, by protocol and sampling steps."""
    if not any((folder / FOLDER).glob("*.json")):
        return []
    own = {"step": exported.step, "network": exported.experiment.sample_with}
    found = [
        evaluation
        for evaluation in load_evaluations(folder)
        if own.items() <= evaluation.sampling.items() and evaluation.result["metrics"]
    ]
    return sorted(found, key=lambda one: (short_hash(one.measurement), one.steps))


def figures(evaluations: Sequence[Evaluation]) -> str:
    """A table for each protocol, with its protocol above it."""
    if not evaluations:
        return "The run has no evaluation of this network at this step."
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(short_hash(evaluation.measurement), []).append(evaluation)
    return "\n\n".join(map(protocol_table, groups.values()))


def protocol_table(group: Sequence[Evaluation]) -> str:
    """The protocol of evaluations that were measured alike, and their metrics as a table."""
    measured = [
        name
        for name in METRICS
        if any(name in evaluation.result["metrics"] for evaluation in group)
    ]
    heads = ["steps", "guidance", "sampler", *(METRICS[name].heading for name in measured)]
    rows = [heads, ["---:"] * len(heads)]
    for evaluation in group:
        sampling, metrics = evaluation.sampling, evaluation.result["metrics"]
        values = [
            METRICS[name].format.format(metrics[name]) if name in metrics else ""
            for name in measured
        ]
        rows.append(
            [
                str(evaluation.steps),
                f"{sampling['guidance_scale']:g}",
                sampling["sampler"],
                *values,
            ]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    line = protocol_line(group[0].measurement, group[0].result["metric"])
    warnings = {text.rstrip(".") for one in group for text in one.result.get("warnings", ())}
    return "\n\n".join([f"{line}.", table, *(f"Warning: {text}." for text in sorted(warnings))])
