"""What an evaluation needs, checked before anything is computed."""

from collections import Counter

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset
from fewstep.data.spaces.space import Space
from fewstep.densities.table import density_of
from fewstep.eval.corrections import check_rows
from fewstep.eval.features import networks
from fewstep.eval.features.feature_network import check_dimension
from fewstep.eval.features.networks import check_feature_network, check_takes_samples
from fewstep.eval.pictures import GRID_COLUMNS
from fewstep.eval.reference import SPLITS, check_reference, measured_against
from fewstep.eval.sampling import check_sampling
from fewstep.training.codec_weights import load_codec
from fewstep.training.experiment import Experiment

FEWEST_SAMPLES = 5
CLASSIFIER = "classifier"


def check_evaluation(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    mesh: Mesh,
    writable: bool = True,
) -> None:
    """Raises an error, before any compute, if an evaluation by config.evaluate would fail.

    writable: whether another data set of the reference may be decoded into data.dir.
    """
    fields = config.evaluate
    if not fields.steps:
        return
    repeated = [steps for steps, count in Counter(fields.steps).items() if count > 1]
    if repeated:
        raise ValueError(
            f"evaluate.steps={tuple(fields.steps)} has {repeated[0]} more than once; name each "
            "number of steps once, in one flag, since a second flag adds to the first"
        )
    check_takes_samples(fields.features, experiment.space)
    check_sampling(experiment, config, mesh)
    for name in ("num_samples", "final_samples"):
        if 0 < fields.get(name, 0) < FEWEST_SAMPLES:
            raise ValueError(
                f"evaluate.{name}={fields[name]} is too few; use {FEWEST_SAMPLES} or more"
            )
    if config.codec.name:
        load_codec(config)  # raises its errors
    check_pictures(experiment.space)
    check_rows(experiment, config)
    if not reason_to_skip(dataset, config):
        check_feature_network(fields.features, fields.weights)
        pictures, reference = measured_against(config, dataset, writable)
        check_reference(reference, pictures, fields.features, experiment.space)
        check_pictures_to_learn(config, pictures)
        check_dimension(fields.features, experiment.space)
        check_agreement(experiment, config)


def check_pictures(space: Space) -> None:
    """Raises ValueError if samples have no picture, such as latents of four channels."""
    shape, dtype = space.example
    try:
        space.show(np.zeros((1, *shape), dtype), GRID_COLUMNS)
    except ValueError as error:
        raise ValueError(
            f"samples of this run have no picture ({error}); use evaluate.steps=() to train "
            "without evaluations"
        ) from error


def check_pictures_to_learn(config: ConfigDict, dataset: Dataset | None) -> None:
    """Raises ValueError if a classifier shall learn from a data set without pictures."""
    fields = config.evaluate
    if dataset is None or dataset.has_pictures:
        return
    for name, asked, instead in (
        ("features=classifier", fields.features == CLASSIFIER, "features=inception"),
        ("agreement=True", fields.agreement, "agreement=False"),
    ):
        if asked:
            raise ValueError(
                f"evaluate.{name} needs a classifier of pictures, and {dataset.name} has latents "
                f"alone; use evaluate.{instead}, or a folder of the pictures as evaluate.reference"
            )


def check_agreement(experiment: Experiment, config: ConfigDict) -> None:
    """Raises ValueError if the classifier for label agreement cannot take the samples."""
    space = experiment.space
    if config.evaluate.agreement and CLASSIFIER not in space.features:
        raise ValueError(
            f"evaluate.agreement=True needs the {CLASSIFIER}, which cannot take {space.name}; use "
            "evaluate.agreement=False"
        )


def reason_to_skip(dataset: Dataset | None, config: ConfigDict) -> str:
    """The reason why an evaluation measures nothing; "" if it measures."""
    if config.evaluate.features == networks.NONE:
        return f"metrics: evaluate.features={networks.NONE}"
    if dataset is None and config.evaluate.reference in SPLITS:
        if config.data.name == NONE:
            return "metrics: data.name=none has no real images"
        if density_of(config.data.name):
            return f"metrics against exact samples, which {config.data.name} does not have"
        return f"metrics: the data set {config.data.name} is not here (--mode=prepare fetches it)"
    return ""
