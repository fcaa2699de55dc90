"""Which labels a run generates images for: in the class shares of its data, or equally often.

The class counts are part of the run's record (training/storage/identity.py). A run from a version
without class shares still draws all classes equally often.
"""

from pathlib import Path

from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset, class_counts, short_hash
from fewstep.data.labels import SHARES
from fewstep.training.cluster.processes import broadcast, warn_once
from fewstep.training.location import parse_location
from fewstep.training.storage import workdir

EQUAL = SHARES[1]
Counts = tuple[int, ...]


def with_recorded_label_shares(config: ConfigDict, run: Path) -> ConfigDict:
    """The config, with data.label_shares=equal if the run's record lacks that field."""
    if not workdir.is_run(run) or "label_shares" in workdir.recorded_identity(run).config["data"]:
        return config
    config = config.copy_and_resolve_references()
    if config.data.label_shares != EQUAL and config.data.num_classes:
        warn_once(
            f"{run} was begun by a version that draws all classes equally often; it keeps doing "
            "so (data.label_shares=equal)"
        )
    config.data.label_shares = EQUAL
    return config


def label_counts(config: ConfigDict, dataset: Dataset | None, run: Path) -> Counts:
    """Counts of the classes, in whose shares an evaluation of the run draws labels.

    () without classes; all 1 for equal shares, and where the counts of the data are unknown.
    """
    classes = config.data.num_classes
    if not classes or config.data.label_shares == EQUAL:
        return (1,) * classes
    kept = recorded_counts(run) if workdir.goes_on(run, config) else ()
    known = kept or known_counts(config, dataset)
    if not known and config.data.name != NONE:
        warn_once(
            f"the class counts of {config.data.name} are unknown here, so all labels are drawn "
            "equally often. Prepare the data set first (--mode=prepare) to draw them in its shares"
        )
    return known or (1,) * classes


def training_counts(config: ConfigDict, dataset: Dataset | None, run: Path) -> Counts:
    """Counts of the classes, in whose shares training draws labels.

    A run that began without known counts goes on with equal shares.
    """
    if workdir.goes_on(run, config) and not recorded_counts(run):
        counts = (1,) * config.data.num_classes
    else:
        counts = label_counts(config, dataset, run)
    # Another process may see the record later than process 0.
    return tuple(broadcast(counts))


def known_counts(config: ConfigDict, dataset: Dataset | None) -> Counts:
    """Images of each class, by the data set or the teacher's record; () if neither says."""
    classes, known = config.data.num_classes, ()
    if dataset is not None and classes:
        known = class_counts(dataset.train, classes)
    elif config.teacher:
        known = recorded_counts(parse_location(config.teacher).folder)
    return known if len(known) == classes and any(known) else ()


def recorded_counts(folder: Path) -> Counts:
    """The class counts in a run's record; () if there is no run or no counts."""
    if not workdir.is_run(folder):
        return ()
    return tuple(workdir.recorded_identity(folder).class_counts or ())


def describe_label_shares(counts: Counts) -> str:
    """How samples get their labels, in words, for the protocol of a measurement."""
    if not counts:
        return "none"
    if len(set(counts)) == 1:
        return "every class in turn"
    return f"in the shares of the data ({short_hash({'counts': list(counts)})})"
