"""Finds the folders of training images and of held-out images, by their names.

Training: train, Train, training, train2017, or seg_train beside seg_test. Held out: test, val,
valid, validation, dev and the like.
"""

import re
from collections.abc import Iterable, Mapping

from fewstep.data.folders.class_names import join_names, printable
from fewstep.data.folders.file_tree import Folder, file_name

TRAIN, TEST, VALIDATION = "train", "test", "validation"
# Names of split folders, with common additions: train2017, test_set, trainA.
SPLIT = re.compile(
    r"(?:(?P<dataset>.+)[-_. ])?(?:(?P<train>training|train|trn)|(?P<test>testing|test|tst)|"
    r"(?P<validation>validation|valid|val|dev|evaluation|eval|holdout|held[-_ ]?out))"
    r"(?:[-_. ]?(?:set|split|data|images?|imgs?|\d{4}|[ab]))?",
    re.IGNORECASE,
)
# The end of the name of one of several files: -00000-of-00002.
NUMBER = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
# A folder with such a name and no neighbours holds all images and is not a class.
HOLDERS = frozenset(
    ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "pics", "files", "jpg")
    + ("data", "all", "samples", "frames", "jpeg", "png")
)
HOW = "put all class folders into a folder train/ if they are classes"


def is_wrapper(folder: Folder) -> bool:
    """Whether all images of a folder lie in sub-folders of one folder in it."""
    filled = folder.filled()
    if folder.images or len(filled) != 1:
        return False
    ((name, only),) = filled.items()
    inner = only.filled()
    alone = len(folder.folders) == 1 or name.lower() in HOLDERS
    return bool(inner) and alone


def join_folders(names: Iterable[str]) -> str:
    """Names of folders, for messages."""
    return join_names([f"{name}/" for name in names])


def split_kind(name: str) -> str | None:
    """The split that a folder of this name holds; None for other names."""
    match = SPLIT.fullmatch(name)
    return _matched_kind(match) if match and not match["dataset"] else None


def _matched_kind(match: re.Match) -> str:
    return next(kind for kind in (TRAIN, TEST, VALIDATION) if match[kind])


def split_kinds(names: Iterable[str]) -> dict[str, str]:
    """The splits among folders, by name. Names like seg_train count only beside a seg_test."""
    matches = {name: match for name in names if (match := SPLIT.fullmatch(name))}
    own: dict[str, set[str]] = {}
    for match in matches.values():
        own.setdefault(match["dataset"] or "", set()).add(_matched_kind(match))
    return {
        name: _matched_kind(match)
        for name, match in matches.items()
        if not match["dataset"]
        or (TRAIN in own[match["dataset"]] and len(own[match["dataset"]]) > 1)
    }


def find_splits(top: Folder) -> tuple[dict[str, Folder], list[str]]:
    """The folder of each split, and remarks; `top` is the training split if it has no splits.

    Raises ValueError if the folders are ambiguous.
    """
    filled = top.filled()
    kinds = split_kinds(filled)
    if not kinds:
        if has_splits_in_classes(top):
            return splits_in_classes(top)
        return {TRAIN: top}, []
    if is_class_called_train(top, kinds):
        return {TRAIN: top}, [f"{next(iter(kinds))}/ is a class, as its neighbours are"]
    if top.images:
        raise ValueError(
            f"{top.name} has images ({file_name(top.images[0])}) beside {join_folders(kinds)}; "
            "move them away"
        )
    others = [name for name in filled if name not in kinds]
    if others:
        raise ValueError(
            f"{top.name} has {join_folders(kinds)} beside {join_folders(others)}, which is not a "
            f"split; move {join_folders(others)} away if the others are splits, or {HOW}"
        )
    empty = [name for name in split_kinds(top.folders) if name not in filled]
    if empty:
        raise ValueError(f"{top.name}/{printable(empty[0])} has no images; remove it or fill it")
    parts: dict[str, Folder] = {}
    for name, kind in kinds.items():
        if kind in parts:
            raise ValueError(
                f"{top.name} has two folders for {kind}, {file_name(parts[kind].path)} and {name}; "
                "merge them, or move one away"
            )
        parts[kind] = filled[name]
    if TRAIN not in parts:
        raise ValueError(
            f"{top.name} has {join_folders(kinds)} but no train/; rename the folder to train on, "
            f"or {HOW}"
        )
    return parts, []


def is_class_called_train(top: Folder, kinds: Mapping[str, str]) -> bool:
    """Whether `train` is a class: its neighbours are not splits, and hold images as it does."""
    filled = top.filled()
    alike = all(folder.images and not folder.filled() for folder in filled.values())
    return list(kinds.values()) == [TRAIN] and len(filled) > 1 and alike and not top.images


def has_splits_in_classes(top: Folder) -> bool:
    """Whether splits lie in class folders: CLASS/train and CLASS/test.

    A single folder with splits in it is a wrapper, not a class. Raises ValueError if only some
    folders have splits.
    """
    filled = top.filled()
    splits = [n for n, f in filled.items() if TRAIN in map(split_kind, f.filled())]
    if not splits or len(filled) == 1:
        return False
    for name, folder in filled.items():
        if folder.images or not all(map(split_kind, folder.filled())):
            raise ValueError(
                f"{top.name} has {splits[0]}/ with splits in it, and {printable(name)}/ with other "
                "images; give all classes the same splits"
            )
    return True


def splits_in_classes(top: Folder) -> tuple[dict[str, Folder], list[str]]:
    """The splits of CLASS/train and CLASS/test, as folders train/CLASS and test/CLASS."""
    parts: dict[str, Folder] = {}
    for name, folder in top.filled().items():
        for kind, part in find_splits(folder)[0].items():
            empty = Folder(f"{top.name} ({kind})", top.path, [], [], {})
            parts.setdefault(kind, empty).folders[name] = part
    return parts, ["splits in each class folder"]


def choose_held_out(
    parts: Mapping[str, Folder], labelled: Mapping[str, bool]
) -> tuple[dict[str, Folder], list[str]]:
    """The folders of `train` and `test`, and remarks on folders that are passed over.

    Of a test and a validation folder, test is held out, unless only it has no labels.
    """
    chosen = {TRAIN: parts[TRAIN]}
    kinds = [kind for kind in (TEST, VALIDATION) if kind in parts]
    alike = [kind for kind in kinds if labelled[kind] == labelled[TRAIN]]
    if not kinds:
        return chosen, []
    held = (alike or kinds)[0]
    others = [file_name(parts[kind].path) for kind in kinds if kind != held]
    words = [f"{file_name(parts[held].path)}/ is held out"] if parts[held].path else []
    return chosen | {TEST: parts[held]}, [*words, *(f"{name}/ is passed over" for name in others)]
