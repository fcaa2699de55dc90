"""Protocols: how a number was measured, as data that decides which numbers may be compared.

A protocol has two parts. `measurement` must be equal for numbers that are compared: features and
their weights, preprocessing, how samples are rounded, the number of samples and their labels, the
real images. `sampling` is what the comparison is about: method, network and training step, solver,
sampling steps, guidance, seed, and the training data. The id of a result is the name of its metric
and a hash of both parts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fewstep.data import short_hash
from fewstep.eval.features.feature_network import FeatureNetwork
from fewstep.messages import differences

# Raise it when code changes what a metric means, so that old and new numbers are not compared.
VERSION = 1
# Fewest samples for the name FID, as in the paper that introduced it. FID also needs Inception's
# published weights.
FID_SAMPLES = 50_000


class Protocol(NamedTuple):
    """Both parts, as plain values by name; see the docstring of the module."""

    measurement: Mapping[str, Any]
    sampling: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """Name of the Frechet distance: fid-50k, or fd-classifier-1k for example.

        "samples" if nothing was measured.
        """
        if not self.measurement:
            return "samples"
        features, samples = self.measurement["features"], self.measurement["samples"]
        fid = features == "inception" and self.measurement["published_weights"]
        name = "fid" if fid and samples >= FID_SAMPLES else f"fd-{features}"
        return f"{name}-{short_count(samples)}"

    @property
    def id(self) -> str:
        """Name of the metric and hash of the protocol; it names the result's file."""
        return f"{self.metric}-{short_hash(self._asdict())}"


def measurement(
    network: FeatureNetwork,
    *,
    rounding: str,
    reference: str,
    reference_sha256: str,
    samples: int,
    labels: str,
    agreement: str = "",
) -> dict[str, Any]:
    """The part of a protocol that must be equal for numbers that are compared.

    rounding: how samples are finished, in words (data/spaces). labels: how samples are labelled,
    in words. agreement: weights of the classifier for label agreement, "" for none.
    """
    return {
        "features": network.name,
        "weights": network.weights,
        "published_weights": network.published,
        "preprocessing": network.preprocessing,
        "rounding": rounding,
        "samples": samples,
        "labels": labels,
        "agreement": agreement,
        "reference": reference,
        "reference_sha256": reference_sha256,
        "version": VERSION,
    }


def short_count(count: int) -> str:
    """1000 as 1k, 50000 as 50k, 1797 as 1797."""
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def check_comparable(measurements: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError that lists what differs unless all measurements are equal.

    measurements: by the name of what was measured.
    """
    (first, expected), *others = measurements.items()
    for name, other in others:
        found = [f"{field} ({a} / {b})" for field, a, b in differences(expected, other)]
        if found:
            raise ValueError(
                f"{first} and {name} were not measured alike and cannot be compared: they differ "
                f"in {'; '.join(found)}. Evaluate both again with the same evaluate fields, "
                "weights and data"
            )
