"""How a number was measured, as data: two numbers may be compared only if this is the same.

A protocol has two parts. `measurement` is what must agree between numbers that are compared:
features and their weights, preprocessing, rounding to bytes, the number of samples and their
labels, the real images. `sampling` is what the comparison is about: method, network and step,
solver, number of steps, guidance, seed, and the data that the network was trained on. The id of a
result is the name of its metric and a hash over both.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fewstep.data import short_hash
from fewstep.eval.features.feature_network import FeatureNetwork
from fewstep.messages import differences

# To be raised when code changes what a metric means, so that old numbers are not compared with new.
VERSION = 1
ROUNDING = "127.5 (x + 1), clipped to [0, 255], to the nearest integer, halves upwards"
# The Frechet distance is called FID only on Inception's published weights and at least so many
# samples, as by those who named it.
FID_SAMPLES = 50_000


class Protocol(NamedTuple):
    """Plain values by name; see the module."""

    measurement: Mapping[str, Any]
    sampling: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """What the Frechet distance may be called: fid-50k, or for example fd-classifier-1k.

        samples, if nothing was measured.
        """
        if not self.measurement:
            return "samples"
        features, samples = self.measurement["features"], self.measurement["samples"]
        fid = features == "inception" and self.measurement["published_weights"]
        name = "fid" if fid and samples >= FID_SAMPLES else f"fd-{features}"
        return f"{name}-{short_count(samples)}"

    @property
    def id(self) -> str:
        """Name of the metric and hash of the protocol; the name of the result's file."""
        return f"{self.metric}-{short_hash(self._asdict())}"


def measurement(
    network: FeatureNetwork,
    *,
    reference: str,
    reference_sha256: str,
    samples: int,
    labels: str,
    agreement: str = "",
) -> dict[str, Any]:
    """The part of a protocol that must agree.

    labels: how samples are labelled, in words. agreement: weights of the classifier that sees them.
    """
    return {
        "features": network.name,
        "weights": network.weights,
        "published_weights": network.published,
        "preprocessing": network.preprocessing,
        "rounding": ROUNDING,
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
    """Raises ValueError, with a list of what differs, unless all measurements are the same.

    measurements: by the name of what was measured.
    """
    (first, expected), *others = measurements.items()
    for name, other in others:
        found = [f"{field} ({a} / {b})" for field, a, b in differences(expected, other)]
        if found:
            raise ValueError(
                f"{first} and {name} were not measured alike and cannot be compared; they differ "
                f"in {'; '.join(found)}. Evaluate both again, with the same evaluate fields, the "
                "same weights and the same data"
            )
