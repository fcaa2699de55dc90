"""Which labels a run makes images for: in the shares of its data, or all alike.

The counts of the classes are part of the run's record (training/storage/identity.py). A run that
was begun before there were shares makes all alike, as it did.
"""

from pathlib import Path

from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset, class_counts, short_hash
from fewstep.data.labels import SHARES
from fewstep.training.cluster.processes import warn_once
from fewstep.training.storage import workdir
from fewstep.training.teacher import parse_location

EQUAL = SHARES[1]
Counts = tuple[int, ...]


def with_recorded_label_shares(config: ConfigDict, run: Path) -> ConfigDict:
    """The config with data.label_shares as the run in a folder was begun, if it lacks the field."""
    if not workdir.is_run(run) or "label_shares" in workdir.recorded_identity(run).config["data"]:
        return config
    config = config.copy_and_resolve_references()
    if config.data.label_shares != EQUAL and config.data.num_classes:
        warn_once(
            f"{run} was begun by a version that made images of all classes alike; it goes on so "
            "(data.label_shares=equal)"
        )
    config.data.label_shares = EQUAL
    return config


def label_counts(config: ConfigDict, dataset: Dataset | None, run: Path) -> Counts:
    """The counts in whose shares the run in a folder is evaluated, one of each class.

    () without classes; all 1 for equal shares, and where nobody knows those of the data.
    """
    classes = config.data.num_classes
    if not classes or config.data.label_shares == EQUAL:
        return (1,) * classes
    known = recorded_counts(run) or known_counts(config, dataset)
    if not known and config.data.name != NONE:
        warn_once(
            f"how often {config.data.name} has each class is not known here: labels are drawn "
            "alike. Prepare the data set first (--mode=prepare) to draw them as it has them"
        )
    return known or (1,) * classes


def training_counts(config: ConfigDict, dataset: Dataset | None, run: Path) -> Counts:
    """Those in whose shares it is trained: what was not known when it began stays so."""
    if workdir.is_run(run) and not recorded_counts(run):
        return (1,) * config.data.num_classes
    return label_counts(config, dataset, run)


def known_counts(config: ConfigDict, dataset: Dataset | None) -> Counts:
    """The images of each class, of the data set or by its teacher's record; () if neither knows."""
    classes, known = config.data.num_classes, ()
    if dataset is not None and classes:
        known = class_counts(dataset.train, classes)
    elif config.teacher:
        known = recorded_counts(parse_location(config.teacher).folder)
    return known if len(known) == classes and any(known) else ()


def recorded_counts(folder: Path) -> Counts:
    """The counts in the record of the run in a folder; () if there is none, or it has none."""
    if not workdir.is_run(folder):
        return ()
    return tuple(workdir.recorded_identity(folder).class_counts or ())


def describe_label_shares(counts: Counts) -> str:
    """How samples are labelled, for the protocol of a measurement."""
    if not counts:
        return "none"
    if len(set(counts)) == 1:
        return "every class in turn"
    return f"in the shares of the data ({short_hash({'counts': list(counts)})})"
