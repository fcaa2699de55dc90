"""The result of an evaluation: what was measured under which protocol, and its warnings."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fewstep.data import Dataset, short_hash
from fewstep.eval.measure import Measures, bias_warnings, real_image_metrics
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.points import collapse_warnings
from fewstep.eval.report.results import ROWS, is_usual_number
from fewstep.eval.sampling import guidance_scale
from fewstep.training.experiment import Experiment
from fewstep.training.sources import reads_data
from fewstep.training.storage.identity import Identity, as_dict, flatten_fields

# Fields of an objective that decide how it samples.
SAMPLED_BY = (
    "solver",
    "spacing",
    "sample_times",
    "guided_channels",
    "ends_at",
    "gamma",
    "guidance_interval",
)


def evaluation_protocol(
    experiment: Experiment,
    config: ConfigDict,
    step: int,
    steps: int,
    measures: Measures | None,
    training_data: str = "",
    samples: int = 0,
) -> Protocol:
    """The protocol of samples in `steps` sampling steps, after training step `step`.

    training_data: digest of the data that the network was trained on, "" if unknown. samples: their
    number, on which the diagnostics of an objective depend.
    """
    solver = config.objective.get("solver", {"name": config.objective.name})
    details = {name: config.objective[name] for name in SAMPLED_BY if name in config.objective}
    return Protocol(
        measurement={} if measures is None else measures.measurement,
        sampling={
            "method": config.method,
            "network": experiment.sample_with,
            "step": step,
            "sampler": solver["name"],
            "sampler_fields": fields_with_values(ConfigDict(details)),
            "steps": steps,
            "guidance_scale": guidance_scale(experiment, config),
            "seed": config.seed,
            **({"training_data": training_data} if training_data else {}),
            **({"diagnosed": samples} if experiment.objective.diagnostics else {}),
        },
    )


def new_result(
    config: ConfigDict, protocol: Protocol, measures: Measures | None, run: str
) -> dict[str, Any]:
    """A result whose metrics are still empty. run: id of the run, "" if it is not known."""
    return {
        "id": protocol.id,
        "metric": protocol.metric,
        "data": config.data.name,
        "images_seen": protocol.sampling["step"] * config.batch_size,
        "protocol": protocol._asdict(),
        "metrics": {},
        "real": {} if measures is None else usual_numbers(real_image_metrics(measures)),
        "prior": {} if measures is None else usual_numbers(measures.known.get("prior", {})),
        "warnings": [] if measures is None else bias_warnings(measures),
        "run": run,
    }


def training_data_digest(
    experiment: Experiment, dataset: Dataset | None, run: Identity | None
) -> str:
    """Digest of the data that a run trains on: the recorded one, else that of the data set.

    "" if the run reads no images, or if neither is known.
    """
    if not reads_data(experiment.objective):
        return ""
    if run is not None and run.data is not None:
        return short_hash(run.data)
    return "" if dataset is None else dataset.digest


def fields_with_values(config: ConfigDict) -> dict[str, Any]:
    """The fields that are not None, by dotted name, without the solver's, which is the sampler."""
    fields = flatten_fields(as_dict(config))
    return {k: v for k, v in fields.items() if v is not None and k != "solver.name"}


def add_numbers(result: dict[str, Any], numbers: Mapping[str, float]) -> None:
    """Add metrics or diagnostics to a result. Warn of those not finite, or too large."""
    result["metrics"] |= usual_numbers(numbers)
    result["warnings"] += number_warnings(numbers)


def usual_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a result may have."""
    return {name: value for name, value in numbers.items() if is_usual_number(value)}


def number_warnings(numbers: Mapping[str, float]) -> list[str]:
    """Warnings of the numbers that a result may not have."""
    odd = [name for name, value in numbers.items() if not is_usual_number(value)]
    return [f"{name} is not finite, or too large" for name in odd]


def add_rows(result: dict[str, Any], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Add corrected rows to a result.

    Warn of numbers not finite, or too large, of weights left out, and of rows that collapsed.
    """
    result["rows"] = {name: usual_numbers(row) for name, row in rows.items()}
    for name, row in result["rows"].items():
        found = number_warnings(rows[name]) + weight_warnings(row)
        found += collapse_warnings(row, result["real"])
        result["warnings"] += [f"{ROWS[name]}: {warning}" for warning in found]


def weight_warnings(row: Mapping[str, float]) -> list[str]:
    """A warning of samples whose weights are not finite, if a row has any."""
    share = 100.0 * row.get("weightless", 0.0)
    return [f"{share:.3g}% of the samples have no finite weight; they got 0"] if share else []
