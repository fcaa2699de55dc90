"""What --mode=sample draws: pairs of seed and label, and the folder that holds one draw.

A folder of pictures has a record beside it, FOLDER.json, with the settings of the draw and the
names of its files. A draw replaces one with the same settings. It touches no other file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.folders.class_names import join_names, label_of, printable
from fewstep.files import check_writable, write_json
from fewstep.objectives.base import Objective
from fewstep.training.storage.identity import differing_fields

AXES = ("seeds", "labels")
COLUMNS = 16
FILES = "files"  # field of the record: names of the pictures
# Sampling steps of a method that follows a path from noise to data; below FEW it draws blurs.
FEW, MANY = 4, 64


class Draw(NamedTuple):
    """Pairs of a seed and a label, each once.

    seeds, labels: int32 [N]; a label is -1 without classes. columns: of the picture of all.
    num_classes: of the run.
    """

    seeds: np.ndarray
    labels: np.ndarray
    columns: int
    num_classes: int

    def files(self) -> list[str]:
        """The name of each picture, such as 000005-label_3.png; 000005.png without classes."""
        width = len(str(self.num_classes - 1))
        return [
            f"{seed:06d}{f'-label_{label:0{width}d}' if label >= 0 else ''}.png"
            for seed, label in zip(self.seeds, self.labels, strict=True)
        ]

    def captions(self, names: Sequence[str]) -> list[str]:
        """Class and seed of each picture, on two lines. names: of the classes, or ()."""
        classes = [*map(printable, names)] or [*map(str, range(self.num_classes))]
        return [
            "\n".join(([classes[label]] if label >= 0 else []) + [f"seed {seed}"])
            for seed, label in zip(self.seeds, self.labels, strict=True)
        ]


def choose_labels(asked: Sequence[int | str], classes: int, names: Sequence[str]) -> list[int]:
    """The labels that are asked for by index, range of indices or name.

    Raises ValueError for a label that is not a class, and for any if there are no classes.
    """
    if asked and not classes:
        raise ValueError("--labels has no effect: the run has no classes; remove it")
    return [label_of(each, names, classes) for label in asked for each in indices_of(label, names)]


def indices_of(label: int | str, names: Sequence[str]) -> Sequence[int | str]:
    """The indices of a range such as 0-9, unless a class has that name; else the label."""
    ends = re.fullmatch(r"(\d+)-(\d+)", str(label))
    if not ends or label in names or int(ends[1]) > int(ends[2]):
        return [label]
    return range(int(ends[1]), int(ends[2]) + 1)


def choose_pairs(
    seeds: Sequence[int], labels: Sequence[int], classes: int, grid: Sequence[str] = ()
) -> Draw:
    """The pairs of a draw: crossed by a grid, else by position; without labels, by seed.

    By position, fewer labels than seeds are used in turn, and a single seed goes with each label.
    Without labels, seed k has the label k modulo the number of classes, or every label in a grid.
    grid: the axes of rows and columns, or (). Raises ValueError.
    """
    columns = COLUMNS
    if grid:
        rows = {"seeds": seeds, "labels": labels or range(classes)}
        if not classes:
            raise ValueError("--grid crosses seeds and labels: the run has no classes; remove it")
        first, second = (dict.fromkeys(rows[axis]) for axis in grid)
        crossed = [{grid[0]: a, grid[1]: b} for a in first for b in second]
        pairs, columns = [(pair["seeds"], pair["labels"]) for pair in crossed], len(second)
    elif labels:
        pairs = pair_by_position(seeds, labels)
    else:
        pairs = [(seed, seed % classes if classes else -1) for seed in seeds]
    each = np.array([*dict.fromkeys(pairs)], np.int32)
    return Draw(each[:, 0], each[:, 1], columns, classes)


def pair_by_position(seeds: Sequence[int], labels: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of seeds and labels by position. Raises ValueError for more labels than seeds."""
    if len(labels) > len(seeds) > 1:
        raise ValueError(
            f"--labels has {len(labels)} labels for {len(seeds)} --seeds, which go with them by "
            "position; give as many seeds, or --grid=seeds,labels for each seed with each label"
        )
    count = max(len(seeds), len(labels))
    return [(seeds[i % len(seeds)], labels[i % len(labels)]) for i in range(count)]


def many_steps(objective: Objective) -> int | None:
    """Sampling steps for a method that needs tens of them; None for others.

    A denoiser of pairs is nearly straight, and needs few.
    """
    return MANY if objective.denoises and "pairs" not in objective.reads else None


def sibling_path(out: Path, suffix: str) -> Path:
    """Return the path beside a folder of samples or an .npz, with its name and another suffix."""
    out = out if out.name.strip(".") else out.resolve()  # . and .. have no name
    return out.with_suffix(suffix) if out.suffix == ".npz" else out.with_name(out.name + suffix)


def record_path(out: Path) -> Path:
    """Return the file that records how the samples in a folder were made."""
    return sibling_path(out, ".json")


def check_folder(out: Path, made_from: Mapping[str, Any]) -> None:
    """Raises ValueError if a folder holds another draw or other files, OSError if not writable.

    So do files of no draw where its record and its picture would be written.
    """
    check_writable(out, "choose another --out")
    record, inside = read_record(out), files_in(out)
    foreign = [name for name in inside if name not in record.get(FILES, ())]
    if not record:
        beside = (record_path(out), sibling_path(out, ".png"))
        foreign += [str(path) for path in beside if path.exists()]
    if foreign:
        raise ValueError(
            f"{out} would mix a draw with files that are not of one: {join_names(foreign)}; choose "
            "another --out"
        )
    settings = {name: value for name, value in record.items() if name != FILES}
    found = differing_fields(settings, made_from) if inside else ()
    if found:
        raise ValueError(
            f"{out} has other images already: {'; '.join(found)}; choose another --out or delete "
            "the folder"
        )


def start_folder(out: Path, made_from: Mapping[str, Any], files: Sequence[str]) -> int:
    """Remove the pictures of the draw before that this one lacks, and record this one.

    Returns how many it has removed.
    """
    stale = ({*read_record(out).get(FILES, ())} & {*files_in(out)}) - {*files}
    for name in stale:
        (out / name).unlink()
    write_json(record_path(out), {**made_from, FILES: files})
    return len(stale)


def read_record(out: Path) -> dict[str, Any]:
    """The record of the draw in a folder; {} without one.

    Earlier versions recorded labels and no files, which they named by seed.
    """
    try:
        record = json.loads(record_path(out).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(record, dict) and "run" in record and record.pop("labels", None):
        record[FILES] = [name for name in files_in(out) if re.fullmatch(r"\d{6,}\.png", name)]
    return record if isinstance(record, dict) and isinstance(record.get(FILES), list) else {}


def files_in(folder: Path) -> list[str]:
    """Names in a folder that are not hidden, in order; [] if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
