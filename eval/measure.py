"""Measures a set of samples: the functions and real images that it needs, and all metrics."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset
from fewstep.data.spaces.space import Space
from fewstep.densities.density import Density
from fewstep.eval.features.classifier import classifier
from fewstep.eval.features.feature_network import Extract, extractor
from fewstep.eval.features.networks import feature_network
from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import Inputs, compute_metrics
from fewstep.eval.metrics.moments import empty_moments, final_statistics, update_moments
from fewstep.eval.metrics.protocol import measurement
from fewstep.eval.points import (
    FEATURES,
    density_measured,
    floor_metrics,
    point_inputs,
    prior_metrics,
)
from fewstep.eval.reference import (
    Reference,
    load_reference,
    neighbourhood_mask,
    reference_name,
    reference_sha256,
)


class Measures(NamedTuple):
    """The functions and real images by which samples are measured.

    extract: computes features. classify: computes logits for label agreement, and may be `extract`
    itself; None leaves agreement out. accuracy: of this classifier on held-out images.
    real: features of real images. measurement: the part of the protocol that describes all this.
    density: whose exact samples the real points are. known: metrics of points that are no samples:
    of "real" ones, the floor, and of the "prior".
    """

    extract: Extract
    classify: Extract | None
    accuracy: float | None
    real: Reference
    measurement: dict[str, Any]
    density: Density | None = None
    known: Mapping[str, Mapping[str, float]] = {}


def load_measures(
    fields: ConfigDict,
    dataset: Dataset | None,
    *,
    space: Space,
    num_classes: int,
    samples: int,
    labels: str,
    root: Path,
    mesh: Mesh,
    read_only: Path | None = None,
) -> Measures:
    """The measures of config.evaluate, read from files under root, or made and written there.

    space, num_classes, samples: space, classes (0 for none) and number of the samples. labels: the
    rule of their labels, in words. read_only: another folder like root, which is read but not
    written. Raises ValueError or FileNotFoundError for a part that cannot be read or made.
    """
    network = feature_network(
        fields.features,
        fields.weights,
        dataset=dataset,
        shape=space.example.shape,
        root=root,
        read_only=read_only,
    )
    extract = extractor(network, mesh, fields.batch_size)
    classify = accuracy = None
    if num_classes > 1 and dataset is not None and fields.agreement:
        labelling, accuracy = classifier(dataset, root, read_only)
        own = network.name == labelling.name
        classify = extract if own else extractor(labelling, mesh, fields.batch_size)
    protocol = measurement(
        network,
        rounding=space.rounding,
        reference=reference_name(fields.reference, dataset),
        reference_sha256=reference_sha256(fields.reference, dataset),
        samples=samples,
        labels=labels,
        agreement="" if classify is None else labelling.weights,
    )
    real = load_reference(fields.reference, dataset, network, extract, protocol, root, read_only)
    measures = Measures(extract, classify, accuracy, real, protocol)
    if network.name != FEATURES:
        return measures
    density = density_measured(dataset)
    known = {
        "real": floor_metrics(real, density, samples),
        "prior": prior_metrics(real, density, samples),
    }
    return measures._replace(density=density, known=known)


def measure(
    batches: Iterable[np.ndarray], labels: np.ndarray, measures: Measures
) -> dict[str, float]:
    """Metrics by name of finished samples, which come in batches [B, ...] and are not kept.

    labels: [N], requested of the sampler. Metrics whose cost is a product of counts use a fixed
    random part of 5,000 samples. Metrics that the real images do not allow are left out.
    """
    extract, classify = measures.extract, measures.classify
    moments, near, logits, classes = None, [], [], []
    is_near, done = neighbourhood_mask(len(labels)), 0
    for samples in batches:
        features, scores = extract(samples)
        moments = update_moments(moments or empty_moments(features.shape[1]), features)
        near.append(features[is_near[done : done + len(features)]])
        done += len(features)
        if scores is not None:
            logits.append(scores)
        if classify is not None:
            own = scores if classify is extract else classify(samples)[1]
            classes.append(own.argmax(axis=1))
    near = np.concatenate(near)
    real = measures.real.neighbourhood
    as_points = measures.measurement["features"] == FEATURES
    inputs = Inputs(
        statistics=final_statistics(moments),
        real_statistics=measures.real.statistics,
        features=near,
        real_features=real,
        train_features=measures.real.train,
        held_out_features=measures.real.held_out,
        logits=np.concatenate(logits) if logits else None,
        classes=np.concatenate(classes) if classes else None,
        labels=labels,
        **(point_inputs(near, real, measures.density) if as_points else {}),
    )
    return compute_metrics(METRICS, inputs)


def real_image_metrics(measures: Measures) -> dict[str, float]:
    """The metrics that are known of real images, as if these were samples."""
    metrics = {"frechet": measures.real.floor, "agreement": measures.accuracy}
    found = {k: value for k, value in metrics.items() if value is not None and value == value}
    return found | {**measures.known.get("real", {})}


def bias_warnings(measures: Measures) -> list[str]:
    """Warnings that the Frechet distance is biased, one for each count that is too small."""
    statistics = measures.real.statistics
    counts = {"samples": measures.measurement["samples"], "real images": statistics.count}
    return [
        f"{count} {what} have fewer directions than the {statistics.mean.size} features: the "
        "Frechet distance is biased upwards by much; compare it only at the same number"
        for what, count in counts.items()
        if 0 < count <= statistics.mean.size
    ]
