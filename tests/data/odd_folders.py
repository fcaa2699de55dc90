"""Typical folders of images: their files, and how each is read or why it is refused.

A file is an image if its content is a number, the grey level of all its pixels; others are written
as they are, text in UTF-8; a Link leads to another path. So the level of a decoded image says which
file it is.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image


class Link(NamedTuple):
    """A symbolic link to a path from the link's folder."""

    target: str


class Case(NamedTuple):
    """files: content by path; a path that ends in / is an empty folder.

    refused: what the message says; else train and test: the class name of each grey level, None
    without labels. said: what the line about it says. inside: the path to load, in the folder.
    """

    name: str
    files: Mapping[str, int | str | bytes | Link]
    refused: str = ""
    train: Mapping[int, str | None] | None = None
    test: Mapping[int, str | None] | None = None
    said: str = ""
    inside: str = ""


PAIR = {"cat/a.png": 1, "dog/b.png": 2}
LABELLED = {1: "cat", 2: "dog"}
PLAIN = {1: None, 2: None}
EDM = {"00000/img00000000.png": 1, "00000/img00000001.png": 2}


def under(folder: str, files: Mapping[str, int]) -> dict[str, int]:
    """The files, all in a folder."""
    return {f"{folder}/{path}": level for path, level in files.items()}


def held_out(files: Mapping[str, int]) -> dict[str, int]:
    """The same files with levels 11 and 12."""
    return {path: level + 10 for path, level in files.items()}


HELD = {11: "cat", 12: "dog"}
FLAT = {"a.png": 1, "b.png": 2}


def dataset_json(labels: object) -> str:
    """EDM's dataset.json."""
    return json.dumps({"labels": labels})


EDM_LABELS = [["00000/img00000000.png", 6], ["00000/img00000001.png", 0]]

LAYOUTS = [
    Case("class folders", PAIR, train=LABELLED, said="class folders; 2 classes (cat, dog)"),
    Case("flat", FLAT, train=PLAIN, said="without labels"),
    Case("one class", {"cat/a.png": 1, "cat/b.png": 2}, train={1: "cat", 2: "cat"}),
    Case(
        "train and test",
        under("train", PAIR) | under("test", held_out(PAIR)),
        train=LABELLED,
        test=HELD,
    ),
    *(
        Case(
            f"{train} and {test}",
            under(train, PAIR) | under(test, held_out(PAIR)),
            train=LABELLED,
            test=HELD,
            said=f"{test}/ is held out",
        )
        for train, test in (
            ("Train", "Test"),
            ("TRAIN", "TEST"),
            ("train", "validation"),
            ("train", "val"),
            ("train", "valid"),
            ("train", "dev"),
            ("training", "testing"),
            ("Training", "Validation"),
            ("training_set", "test_set"),
            ("train2017", "val2017"),
            ("train_images", "test_images"),
            ("seg_train", "seg_test"),
            ("train", "eval"),
        )
    ),
    Case(
        "train, val and test",
        under("train", PAIR) | under("val", {"cat/v.png": 21}) | under("test", held_out(PAIR)),
        train=LABELLED,
        test=HELD,
        said="val/ is passed over",
    ),
    Case(
        "train, val and test without labels",
        under("train", PAIR) | under("val", held_out(PAIR)) | {"test/1.png": 31},
        train=LABELLED,
        test=HELD,
        said="test/ is passed over",
    ),
    Case(
        "test without labels",
        under("train", PAIR) | {"test/1.png": 31},
        refused="test has other classes than .*train: none at all",
    ),
    Case(
        "train and test without labels",
        under("train", FLAT) | under("test", {"c.png": 11}),
        train=PLAIN,
        test={11: None},
    ),
    Case("train alone", under("train", PAIR), train=LABELLED),
    Case("test alone", under("test", PAIR), refused="test/ but no train/"),
    Case("val and test", under("test", PAIR) | under("val", PAIR), refused="but no train/"),
    Case(
        "a class called train",
        {"bus/a.png": 1, "train/b.png": 2, "car/c.png": 3},
        train={1: "bus", 2: "train", 3: "car"},
        said="train/ is a class",
    ),
    Case(
        "a class called train, with sub-folders",
        {"bus/a.png": 1, "train/steam/b.png": 2, "car/c.png": 3},
        refused="train/ beside bus/, car/.*folder train/ if they are classes",
    ),
    Case(
        "a class called train in train/",
        {"train/bus/a.png": 1, "train/train/b.png": 2, "train/test/c.png": 3},
        train={1: "bus", 2: "train", 3: "test"},
    ),
    Case(
        "a class called test",
        {"cat/a.png": 1, "test/b.png": 2},
        refused="test/ beside cat/",
    ),
    Case(
        "train, test and unlabelled",
        under("train", PAIR) | under("test", held_out(PAIR)) | {"unlabeled/x.png": 41},
        refused="test/, train/ beside unlabeled/",
    ),
    Case(
        "images beside train",
        under("train", PAIR) | {"cover.png": 9},
        refused=r"images \(cover.png\) beside train/",
    ),
    Case(
        "two trains", under("train", PAIR) | under("Train", PAIR), refused="two folders for train"
    ),
    Case(
        "trainA and trainB",
        {"trainA/a.png": 1, "trainB/b.png": 2, "testA/c.png": 3, "testB/d.png": 4},
        refused="two folders for test",
    ),
    Case("an empty test", under("train", PAIR) | {"test/": ""}, refused="test has no images"),
    Case(
        "splits in classes",
        {"cat/train/a.png": 1, "cat/test/b.png": 11, "dog/train/c.png": 2, "dog/test/d.png": 12},
        train=LABELLED,
        test=HELD,
        said="splits in each class folder",
    ),
    Case(
        "splits in some classes",
        {"cat/train/a.png": 1, "cat/test/b.png": 11, "dog/c.png": 2},
        refused="cat/ with splits in it, and dog/ with other images",
    ),
    Case(
        "classes missing in the test",
        under("train", PAIR) | {"test/dog/x.png": 12},
        train=LABELLED,
        test={12: "dog"},
    ),
    Case(
        "one class in the test, with sub-folders",
        under("train", PAIR) | {"test/dog/old/x.png": 12},
        train=LABELLED,
        test={12: "dog"},
    ),
    Case(
        "a class called data",
        {"train/data/a.png": 1, "train/dog/b.png": 2, "test/data/c.png": 11},
        train={1: "data", 2: "dog"},
        test={11: "data"},
    ),
    Case(
        "classes only in the test",
        under("train", PAIR) | {"test/cow/x.png": 12},
        refused="test has other classes than .*train: cow",
    ),
    Case("wrapped classes", under("my_set", PAIR), train=LABELLED, said="inside my_set/"),
    Case(
        "wrapped splits",
        under("archive/my_set/train", PAIR) | under("archive/my_set/test", held_out(PAIR)),
        train=LABELLED,
        test=HELD,
        said="inside archive/my_set/",
    ),
    Case(
        "a split wrapped in itself",
        under("training_set/training_set", PAIR) | under("test_set/test_set", held_out(PAIR)),
        train=LABELLED,
        test=HELD,
    ),
    Case(
        "images without labels, wrapped in their split",
        under("cars_train/cars_train", FLAT) | under("cars_test/cars_test", {"c.png": 11}),
        train=PLAIN,
        test={11: None},
    ),
    Case("a folder images", under("images", FLAT), train=PLAIN, said="all images in images/"),
    Case(
        "YOLO's folders",
        {"train/images/a.png": 1, "train/labels/a.txt": "0 .5 .5 1 1", "valid/images/b.png": 11},
        train={1: None},
        test={11: None},
    ),
    Case(
        "images and masks",
        {"images/a.png": 1, "masks/a.png": 2},
        refused="images/ beside masks/",
    ),
    Case(
        "tiny-imagenet",
        {"train/n01/images/a.png": 1, "train/n02/images/b.png": 2, "val/images/c.png": 3},
        refused="val has other classes than .*train: none at all",
    ),
    Case(
        "nested classes",
        {"cat/persian/a.png": 1, "cat/b.png": 3, "dog/big/old/c.png": 2},
        train={1: "cat", 3: "cat", 2: "dog"},
        said="their sub-folders joined",
    ),
    Case("images and class folders", PAIR | {"c.png": 3}, refused=r"both images \(c.png\)"),
    Case("an empty class", PAIR | {"cow/": ""}, refused="class folder .*cow has no images"),
    Case("a class of notes", PAIR | {"cow/a.txt": "moo"}, refused="cow has no images"),
    Case("flat with notes", FLAT | {"notes/a.txt": "moo"}, train=PLAIN, said="without labels"),
    Case("nothing", {"a.txt": "moo"}, refused=r"has no images .*passed over 1: 1 .txt \(a.txt\)"),
    Case("an archive alone", {"a.tar": "x"}, refused=r"has no images .* 1 .tar"),
]

LABELS = [
    Case(
        "EDM's tool",
        EDM | {"dataset.json": dataset_json(EDM_LABELS)},
        train={1: "6", 2: "0"},
        said="labels of dataset.json",
    ),
    Case("EDM without labels", EDM | {"dataset.json": dataset_json(None)}, train=PLAIN),
    Case("EDM without dataset.json", EDM, train=PLAIN, said="numbered folders"),
    Case(
        "FFHQ's folders",
        {"00000/00007.png": 1, "01000/01003.png": 2},
        train=PLAIN,
        said="numbered folders",
    ),
    Case(
        "numbers as classes",
        {"00000/x.png": 1, "00001/y.png": 2},
        train={1: "00000", 2: "00001"},
    ),
    Case(
        "EDM, one image more",
        EDM | {"00000/more.png": 3, "dataset.json": dataset_json(EDM_LABELS)},
        refused="00000/more.png is one of 1 images without labels of dataset.json",
    ),
    Case(
        "EDM, one image less",
        EDM | {"dataset.json": dataset_json([*EDM_LABELS, ["00000/img00000002.png", 1]])},
        refused="dataset.json names '00000/img00000002.png', which matches no image",
    ),
    Case("EDM, broken", EDM | {"dataset.json": "{"}, refused="dataset.json is not"),
    Case("EDM, other content", EDM | {"dataset.json": "[1]"}, refused="dataset.json is not"),
    *(
        Case(
            f"EDM, label {label}",
            EDM | {"dataset.json": dataset_json([[image, label] for image in EDM])},
            refused="label",
        )
        for label in (-1, True, 0.5, [0, 1], 20261128)
    ),
    Case(
        "EDM in train and test",
        under("train", EDM)
        | {"train/dataset.json": dataset_json(EDM_LABELS)}
        | {"test/00000/img00000000.png": 11}
        | {"test/dataset.json": dataset_json(EDM_LABELS[:1])},
        train={1: "6", 2: "0"},
        test={11: "6"},
    ),
    Case(
        "Hugging Face's metadata.csv",
        FLAT | {"metadata.csv": "file_name,label\na.png,10\nb.png,9\n"},
        train={1: "10", 2: "9"},
        said="nothing passed over",
    ),
    Case(
        "Hugging Face's metadata.jsonl",
        FLAT
        | {
            "metadata.jsonl": '{"file_name": "a.png", "label": 3}\n'
            '{"file_name": "b.png", "label": 2}'
        },
        train={1: "3", 2: "2"},
    ),
    Case(
        "captions",
        FLAT | {"metadata.csv": "file_name,text\na.png,a cat\nb.png,a dog\n"},
        train=PLAIN,
    ),
    Case(
        "metadata in splits",
        under("train", FLAT | {"metadata.csv": "file_name,label\na.png,cat\nb.png,dog\n"})
        | under("test", {"a.png": 12, "metadata.csv": "file_name,label\na.png,dog\n"}),
        train=LABELLED,
        test={12: "dog"},
    ),
    Case(
        "images and labels.csv",
        under("images", FLAT) | {"labels.csv": "image,label\na.png,cat\nb.png,dog\n"},
        train=LABELLED,
        said="labels of labels.csv",
    ),
    Case(
        "stems and two columns",
        under("train", FLAT) | {"labels.csv": "id,breed\na,cat\nb,dog\n"},
        train=LABELLED,
    ),
    Case(
        "no heading",
        FLAT | {"labels.csv": "a.png,cat\nb.png,dog\n"},
        train=LABELLED,
    ),
    Case(
        "semicolons and a byte order mark",
        FLAT | {"labels.csv": "\ufefffilename;class\na.png;cat\nb.png;dog\n"},
        train=LABELLED,
    ),
    Case(
        "labels.csv of one image",
        FLAT | {"labels.csv": "image,label\na.png,cat\n"},
        refused="b.png is one of 1 images without labels of labels.csv",
    ),
    Case(
        "labels.csv of lost images",
        FLAT | {"labels.csv": "image,label\na.png,cat\nc.png,dog\n"},
        refused="labels.csv names 'c.png'",
    ),
    Case(
        "labels.csv of other images",
        FLAT | {"labels.csv": "image,label\nx.png,cat\n"},
        refused="labels.csv names no image",
    ),
    Case(
        "two labels",
        FLAT | {"labels.csv": "image,label\na.png,cat\na.png,dog\nb.png,dog\n"},
        refused="two labels, 'cat' and 'dog'",
    ),
    Case(
        "two labels in dataset.json",
        FLAT | {"dataset.json": dataset_json([["a.png", 1], ["a.png", 0], ["b.png", 0]])},
        refused="a.png has two labels, 1 and 0",
    ),
    Case(
        "numbers that name images and classes",
        {"0.png": 1, "1.png": 2, "labels.csv": "id,label\n0,1\n1,0\n"},
        train={1: "1", 2: "0"},
    ),
    Case(
        "a first row without a label",
        FLAT | {"train.csv": "image,label\na.png\nb.png,dog\n"},
        refused="train.csv has no label for a.png",
    ),
    Case(
        "a null label",
        FLAT
        | {
            "metadata.jsonl": '{"file_name": "a.png", "label": null}\n'
            '{"file_name": "b.png", "label": "dog"}\n'
        },
        refused="metadata.jsonl has no label for a.png",
    ),
    Case(
        "JSON that is not read",
        FLAT | {"info.json": b'{"by": "Ren\xe9"}'},
        train=PLAIN,
        said="1 .json",
    ),
    Case(
        "a table in another encoding",
        FLAT | {"labels.csv": b"image,label\na.png,caf\xe9\n"},
        refused="labels.csv is not UTF-8 text",
    ),
    Case(
        "an empty table", FLAT | {"labels.csv": "image,label\n"}, refused="labels.csv has no rows"
    ),
    Case(
        "an empty label",
        FLAT | {"labels.csv": "image,label\na.png,cat\nb.png,\n"},
        refused="no label for b.png",
    ),
    Case(
        "several columns, none of them label",
        FLAT | {"labels.csv": "image,age,sex\na.png,3,f\nb.png,4,m\n"},
        refused="no column `label`, only age, sex",
    ),
    Case(
        "captions in two columns",
        {f"{i}.png": i for i in range(10)}
        | {"labels.csv": "image,text\n" + "".join(f"{i}.png,caption {i}\n" for i in range(10))},
        refused="a different text for each image",
    ),
    Case(
        "labels of both splits in one table",
        {"train/a.png": 1, "test/a.png": 12}
        | {"labels.csv": "path,label\ntrain/a.png,cat\ntest/a.png,dog\n"},
        train={1: "cat"},
        test={12: "dog"},
    ),
    Case(
        "labels of the split for training alone",
        {"train/a.png": 1, "test/b.png": 12, "train.csv": "id,label\na,cat\n"},
        refused="test/b.png is one of 1 images without labels of train.csv",
    ),
    Case(
        "a column of splits",
        FLAT | {"labels.csv": "image,label,split\na.png,cat,train\nb.png,dog,test\n"},
        refused="column split",
    ),
    Case(
        "class folders and the same labels",
        PAIR | {"labels.csv": "image,label\ncat/a.png,Katze\ndog/b.png,Hund\n"},
        train={1: "Katze", 2: "Hund"},
    ),
    Case(
        "class folders and other labels",
        PAIR | {"cat/c.png": 3, "labels.csv": "image,label\ncat/a.png,x\ndog/b.png,y\ncat/c.png,y"},
        refused="disagree with the labels of labels.csv",
    ),
    *(
        Case(
            f"images and {name}",
            under("images", FLAT) | {name: "a.png cat\nb.png dog\n"},
            refused=f"{name} is not supported.*labels.csv",
        )
        for name in ("labels.txt", "labels.json", "Labels.npy", "metadata.parquet")
    ),
    *(
        Case(f"labels.json, {form}", FLAT | {"labels.json": text}, train=LABELLED, said="labels of")
        for form, text in {
            "names": '{"a.png": "cat", "b": "dog"}',
            "pairs": '[["a.png", "cat"], ["b.png", "dog"]]',
            "labels": '{"labels": [["a.png", "cat"], ["./b.png", "dog"]]}',
        }.items()
    ),
    Case(
        "labels.json, a missing label",
        FLAT | {"labels.json": '{"a.png": 3}'},
        refused="b.png is one of 1 images without labels of labels.json",
    ),
    Case(
        "labels.json, a missing image",
        FLAT | {"labels.json": '{"a.png": 3, "b.png": 4, "c.png": 5}'},
        refused="names 'c.png', which matches no image",
    ),
    Case(
        "labels.json, other content",
        FLAT | {"labels.json": '{"categories": [{"id": 1}]}'},
        refused="labels.json is not supported.*labels.csv",
    ),
    Case(
        "class folders and their numbers",
        PAIR | {"labels.json": '{"cat": 0, "dog": 1}'},
        train=LABELLED,
    ),
    Case("tar shards", {"000000.tar": "x"}, refused="give webdataset:.* to read its .tar"),
    Case(
        "names in dataset.json",
        EDM | {"dataset.json": dataset_json([[n, "x"] for n in EDM])},
        refused="'x', which is not a whole number; rename it labels.json",
    ),
    Case("class folders and their names", PAIR | {"labels.txt": "cat\ndog\n"}, train=LABELLED),
    Case("an unrelated table", PAIR | {"results.csv": "loss\n1\n2\n"}, train=LABELLED),
]

FILES = [
    Case(
        "hidden files",
        PAIR
        | {
            "cat/.ipynb_checkpoints/a-checkpoint.png": 91,
            "cat/._a.png": "companion",
            "__MACOSX/cat/._a.png": 92,
            "cat/@eaDir/thumb.jpg": 93,
            ".git/x.png": 94,
            "dog/Thumbs.db": "x",
            "$RECYCLE.BIN/a.png": 95,
        },
        train=LABELLED,
        said="6 hidden",
    ),
    Case(
        "suffixes",
        {
            f"cat/{i}{suffix}": i
            for i, suffix in enumerate(
                (".PNG", ".png", ".bmp", ".gif", ".GIF", ".tif", ".tiff", ".TIFF", ".ppm", ".pgm")
            )
        }
        | {"cat/1.heic": "x", "cat/readme": "x", "cat/a.png.txt": "x"},
        train=dict.fromkeys(range(10), "cat"),
        said="1 .heic",
    ),
    Case(
        "a linked class",
        {"set/cat/a.png": 1, "set/dog": Link("../elsewhere"), "elsewhere/b.png": 2},
        train=LABELLED,
        inside="set",
    ),
    Case(
        "a linked image",
        {"set/cat/a.png": 1, "set/dog/b.png": Link("../../b.png"), "b.png": 2},
        train=LABELLED,
        inside="set",
    ),
    Case("a link to a parent", PAIR | {"cat/up": Link("..")}, train=LABELLED, said="1 links to a"),
    Case(
        "a link above the folder",
        {"set/cat/a.png": 1, "set/cat/up": Link("../.."), "set/dog/b.png": 2, "other/x.png": 9},
        train=LABELLED,
        inside="set",
    ),
    Case(
        "links in a circle",
        PAIR | {"cat/d": Link("../dog"), "dog/c": Link("../cat")},
        train={1: "both", 2: "both"},
        said="2 in several classes",
    ),
    Case("a link to itself", PAIR | {"cat/x": Link("x")}, train=LABELLED, said="1 broken links"),
    Case(
        "a link within a class",
        PAIR | {"cat/more/z.png": Link("../a.png")},
        train=LABELLED,
        said="1 links to images of the same class left out",
    ),
    Case(
        "a broken link", PAIR | {"cat/z.png": Link("gone.png")}, refused="cat/z.png: a broken link"
    ),
    Case("a folder called x.png", PAIR | {"cat/x.png/b.png": 3}, train=LABELLED | {3: "cat"}),
    Case(
        "odd names",
        {"naïve café/ä ö.png": 1, "日本/%20;'\"$(x).png": 2, " a, b /-rf.png": 3},
        train={1: "naïve café", 2: "日本", 3: " a, b "},
    ),
    Case(
        "one name in two forms of Unicode",
        {"train/caf\u00e9/a.png": 1, "test/cafe\u0301/b.png": 2},
        train={1: "caf\u00e9"},
        test={2: "caf\u00e9"},
    ),
    Case(
        "both forms in one folder",
        {"caf\u00e9/a.png": 1, "cafe\u0301/b.png": 2},
        refused="the same in Unicode",
    ),
    Case("a name that is not UTF-8", {"a\udcff/a.png": 1, "b/b.png": 2}, refused="not UTF-8"),
    Case("upper and lower case", {"A/a.png": 1, "a/b.png": 2}, train={1: "A", 2: "a"}),
    Case(
        "numbers",
        {f"{i}/a.png": i for i in (1, 2, 3, 10, 11, 20)},
        train={i: str(i) for i in (1, 2, 3, 10, 11, 20)},
        said="6 classes (1, 2, 3, 10, 11, 20)",
    ),
    Case(
        "a truncated file", PAIR | {"cat/z.png": "\x89PNG cut"}, refused="cat/z.png cannot be read"
    ),
    Case("an empty file", PAIR | {"cat/z.jpg": ""}, refused="cat/z.jpg cannot be read"),
    Case(
        "a Git LFS pointer",
        PAIR | {"cat/z.jpg": "version https://git-lfs.github.com/spec/v1\n"},
        refused="cat/z.jpg cannot be read",
    ),
]

CASES = {case.name: case for case in (*LAYOUTS, *LABELS, *FILES)}


def png(level: int, suffix: str = ".png") -> bytes:
    """A grey image of one level."""
    content = io.BytesIO()
    kind = Image.registered_extensions()[suffix.lower()]
    Image.new("L", (4, 4), level).save(content, kind)
    return content.getvalue()


def make(root: Path, files: Mapping[str, int | str | bytes | Link]) -> Path:
    """Write the files of a case under a folder."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            os.symlink(content.target, path)
        elif isinstance(content, int):
            path.write_bytes(png(content, path.suffix))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def make_zip(path: Path, files: Mapping[str, int | str | bytes]) -> Path:
    """Write the files of a case into a .zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            suffix = Path(name).suffix
            archive.writestr(name, png(content, suffix) if isinstance(content, int) else content)
    return path
