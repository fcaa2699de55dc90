"""Measures samples that are given: every metric against a reference, with the protocol.

The numbers are those of an evaluation (eval/measure.py), so samples of a run have the same as
--mode=evaluate gives them, if reference, features and number are the same.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset, Selection, data_root
from fewstep.data.origins import ORIGINS
from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.features.classifier import FLOORS
from fewstep.eval.features.feature_network import check_dimension
from fewstep.eval.features.networks import NONE, check_feature_network, check_takes_samples
from fewstep.eval.given import Given
from fewstep.eval.measure import Measures, bias_warnings, load_measures, measure, real_image_metrics
from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import error_name
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.published import shape_text
from fewstep.eval.reference import SPLITS, STATISTICS, check_reference, reference_dataset
from fewstep.eval.report.results import Result, to_json_types

BATCH = 256  # samples measured at a time, over all devices
ROUNDING = "bytes as given"
CLASSIFIER, INCEPTION = "classifier", "inception"


def measure_given(
    given: Given,
    reference: str,
    mesh: Mesh,
    *,
    split: str = SPLITS[0],
    features: str = "",
    weights: str = "",
    data_dir: str = "",
) -> Result:
    """All metrics of samples against real images, with the protocol of each number.

    reference: a data set such as digits or folder:PATH, a folder, or an .npz of statistics or
    images. It is read at the size of the samples. split: train, test or all. features: as in
    evaluate.features; "" is `classifier` for the data sets that it is made for, else `inception`.
    weights: file of the feature network.

    Raises ValueError or FileNotFoundError, before any compute, for what cannot be measured.
    """
    if reference.endswith(STATISTICS) and split != SPLITS[0]:
        raise ValueError(
            f"--split={split} is for a data set; {reference} is a file, so leave it out"
        )
    space = pixel_space(given.shape)._replace(rounding=ROUNDING)
    fields = ConfigDict(
        {
            "features": features or default_features(reference),
            "weights": weights,
            "reference": reference if reference.endswith(STATISTICS) else check_split(split),
            "batch_size": -(-min(BATCH, len(given.images)) // mesh.size) * mesh.size,
        }
    )
    check_takes_samples(fields.features, space)
    if fields.features == NONE:
        raise ValueError(f"evaluate.features={NONE} measures nothing; choose features")
    check_feature_network(fields.features, weights)
    dataset = open_reference(reference, given, data_dir)
    check_reference(fields.reference, dataset, fields.features, space)
    check_dimension(fields.features, space)
    classes = labelled_classes(given, dataset)
    fields.agreement = fields.features == CLASSIFIER and classes > 1
    measures = load_measures(
        fields,
        dataset,
        space=space,
        num_classes=classes,
        samples=len(given.images),
        labels="unknown" if given.labels is None else "as given",
        root=data_root(data_dir),
        mesh=mesh,
    )
    return measured(given, measures)


def measured(given: Given, measures: Measures) -> Result:
    """The result of the measures: metrics, protocol and warnings, as plain values."""
    digest = hashlib.sha256()
    labels = np.full(len(given.images), -1, np.int32) if given.labels is None else given.labels
    metrics = measure(hashed_batches(given, digest), labels, measures)
    sampling = {"samples": given.name, "samples_sha256": digest.hexdigest()}
    protocol = Protocol(measures.measurement, sampling)
    return to_json_types(
        {
            "id": protocol.id,
            "metric": protocol.metric,
            "samples": given.name,
            "shape": given.shape,
            "protocol": protocol._asdict(),
            "metrics": metrics,
            "real": real_image_metrics(measures),
            "warnings": bias_warnings(measures),
        }
    )


def hashed_batches(given: Given, digest: Any) -> Iterator[np.ndarray]:
    """Yields the samples in batches, and adds their bytes to a hash."""
    for start in range(0, len(given.images), BATCH):
        batch = np.ascontiguousarray(given.images[start : start + BATCH])
        digest.update(batch)
        yield batch


def default_features(reference: str) -> str:
    """The features for a reference: a classifier's where Inception's say nothing."""
    return CLASSIFIER if reference in FLOORS else INCEPTION


def check_split(split: str) -> str:
    """The split. Raises ValueError for a name that is none."""
    if split not in SPLITS:
        raise ValueError(f"--split={split} is none of {', '.join(SPLITS)}")
    return split


def open_reference(reference: str, given: Given, data_dir: str) -> Dataset | None:
    """The data set of a reference at the size of the samples; None for a file.

    Raises ValueError for samples that are not square, which no data set has.
    """
    if reference.endswith(STATISTICS):
        return None
    height, width, channels = given.shape
    if height != width:
        raise ValueError(
            f"{given.name} is of {shape_text(given.shape)}, and data sets have square images; "
            "measure against an .npz of images of that size"
        )
    is_folder = reference not in ORIGINS and Path(reference).expanduser().exists()
    name = f"folder:{Path(reference).expanduser().absolute()}" if is_folder else reference
    selection = Selection(name, data_dir, height, channels)
    return reference_dataset(selection, f"--reference={reference}")


def labelled_classes(given: Given, dataset: Dataset | None) -> int:
    """The number of classes, if samples and reference have labels, else 0.

    Raises ValueError for a label that the reference does not have.
    """
    classes = 0 if dataset is None or given.labels is None else dataset.num_classes
    if classes and not 0 <= given.labels.min() <= given.labels.max() < classes:
        raise ValueError(
            f"labels of {given.name} go from {given.labels.min()} to {given.labels.max()}, and "
            f"{dataset.name} has the classes 0 to {classes - 1}; remove the labels, or use those "
            "of the reference"
        )
    return classes


def describe(result: Result) -> str:
    """A result as lines of text: every metric, the protocol and the warnings."""
    measured = result["protocol"]["measurement"]
    lines = [
        f"{measured['samples']} samples of {shape_text(result['shape'])} ({result['samples']}), "
        f"{result['metric']} against {measured['reference']}"
    ]
    for name, value in result["metrics"].items():
        if name in METRICS:
            metric, error = METRICS[name], result["metrics"].get(error_name(name))
            deviation = "" if error is None else f" ± {metric.format.format(error)}"
            lines.append(f"  {metric.heading:<26} {metric.format.format(value)}{deviation}")
    real = ", ".join(f"{name} {value:.3f}" for name, value in result["real"].items())
    lines += [f"  real images instead of samples: {real}"] if real else []
    lines += [
        f"  protocol: {measured['features']} {measured['weights'][:12]}, "
        f"{measured['preprocessing']}; {measured['rounding']}; labels {measured['labels']}; "
        f"reference {measured['reference_sha256'][:12]}"
    ]
    return "\n".join(lines + [f"  warning: {warning}" for warning in result["warnings"]])
