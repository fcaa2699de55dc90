"""Image data sets of TensorFlow Datasets, kept as ArrayRecord and read without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from fewstep.data.arrays.array_cache import file_stamps
from fewstep.data.arrays.dataset import NULL_LABEL, UnknownNameError
from fewstep.data.arrays.pixels import MODES, fit_array
from fewstep.data.arrays.shards import Source, each_image
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.fashion_mnist import FashionMNIST
from fewstep.data.folders.decoding import FIRST_DECODING, NEWEST, Decoding
from fewstep.data.folders.image_file import Color, composite_array
from fewstep.progress import note

FORMAT = "array_record"  # TFDS reads and writes it without TensorFlow
OWN_BUILDERS = {"fashion_mnist": FashionMNIST}
# The first of these that exists is `test`. ImageNet's test split has no labels, hence the order.
HELD_OUT = ("validation", "test")
INCOMPLETE = "incomplete.*"  # TFDS's name of an unfinished folder

Builder = tfds.core.DatasetBuilder


def tfds_images(
    name: str, root: Path, image_size: int, channels: int, rules: Decoding = NEWEST
) -> Undecoded:
    """The images of the TFDS data set `name`, prepared under root/NAME.

    image_size, channels: 0 for the data set's own; images of several sizes need an image_size.
    Raises UnknownNameError for an unknown name, FileNotFoundError if the data set is not
    prepared, and ValueError without an image feature, a training split or a needed image_size.
    """
    builder = open_builder(name, root)
    shape = image_shape(builder, image_size, channels)
    if not builder.info.splits:
        raise FileNotFoundError(
            f"data set {name} is not prepared under {root}; "
            "run main.py --mode=prepare with the same --config first"
        )
    image, label = image_feature(builder), label_feature(builder)
    splits = split_names(builder)
    files = [Path(f) for own in splits.values() for f in builder.info.splits[own].filepaths]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is missing; {_redo_command(builder)}")
    classes = builder.info.features[label].names if label else []
    num_classes = builder.info.features[label].num_classes if label else 0
    if len(classes) != num_classes:
        raise ValueError(
            f"{builder.data_path} has names of {len(classes)} of its {num_classes} classes; "
            f"{_redo_command(builder)}"
        )
    origin = [builder.info.full_name, splits, file_stamps(files, Path(builder.data_path))]
    # Without alpha all rules give the same arrays, in the folder that they always had.
    opaque = rules.rules == FIRST_DECODING or builder.info.features[image].shape[-1] in MODES
    background = None if opaque else rules.background
    return Undecoded(
        name=f"tfds:{name}",
        origin=origin if opaque else [*origin, f"decoding {rules.rules}", background],
        image_shape=shape,
        num_classes=num_classes,
        splits={
            ours: _split_source(builder, own, image, label, shape, background)
            for ours, own in splits.items()
        },
        classes=tuple(classes),
    )


def write_tfds(name: str, root: Path, image_size: int, channels: int) -> None:
    """Download a TFDS data set and write it under root/NAME, if it is not there.

    Raises ValueError as `tfds_images` does, and if TFDS cannot download or encode the data.
    """
    builder = open_builder(name, root)
    image_shape(builder, image_size, channels)  # reports a missing image_size before the download
    if builder.info.splits:
        return
    root.mkdir(parents=True, exist_ok=True)
    download = tfds.download.DownloadConfig(try_download_gcs=False)  # GCS has no ArrayRecord
    try:
        builder.download_and_prepare(download_config=download)
    except Exception as error:  # data sets raise any exception, and TFDS wraps some
        raise ValueError(_preparation_error(name, root, error)) from error
    for leftover in Path(builder.data_path).parent.glob(INCOMPLETE):
        note(f"{leftover} is left of a preparation that was killed; delete it if none is running")


def open_builder(name: str, root: Path) -> Builder:
    """The TFDS builder of a data set, from TFDS's code or from files under root.

    Raises UnknownNameError if there is none.
    """
    own = OWN_BUILDERS.get(name)
    try:
        if own:
            return own(data_dir=str(root), file_format=FORMAT)
        return tfds.builder(name, data_dir=str(root), file_format=FORMAT, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise UnknownNameError(name) from error
    except Exception as error:  # an unknown TFDS config or version, another file format, ...
        raise ValueError(
            f"TFDS cannot open {name} under {root} as {FORMAT}: {_first_line(error)}. Correct the "
            f"name, delete its folder in {root}, or choose another data.dir; then prepare it"
        ) from error


def builder_names() -> list[str]:
    """The names of TFDS's own data sets."""
    return tfds.list_builders(with_community_datasets=False)


def image_feature(builder: Builder) -> str:
    """The name of the image feature: `image`, or the only one. Raises ValueError without one."""
    found = _features_of(builder, tfds.features.Image)
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    raise ValueError(
        f"data set {builder.name} has {len(found)} image features ({', '.join(found) or 'none'}); "
        "choose a data set with one, or with one called image"
    )


def label_feature(builder: Builder) -> str:
    """The name of the class label: `label`, the only one, or "" if there is none.

    Raises ValueError if there are several and none is called `label`.
    """
    found = _features_of(builder, tfds.features.ClassLabel)
    if "label" in found or len(found) < 2:
        return "label" if "label" in found else "".join(found)
    raise ValueError(
        f"{builder.name} has several class labels ({', '.join(found)}), none called label; "
        "choose a data set with one"
    )


def image_shape(builder: Builder, image_size: int, channels: int) -> tuple[int, int, int]:
    """The shape (S, S, C) of a decoded image; 0 takes the data set's own size or channels.

    Raises ValueError if image_size is 0 and images are not squares of one size, or if pixels are
    not uint8.
    """
    feature = builder.info.features[image_feature(builder)]
    height, width, own_channels = feature.shape
    if feature.np_dtype != np.uint8:
        raise ValueError(
            f"images of {builder.name} are {np.dtype(feature.np_dtype)}; only uint8 is supported"
        )
    if not image_size and (height is None or height != width):
        raise ValueError(
            f"data.image_size is required for {builder.name}, whose images are {height} x {width} "
            "pixels (None: they vary); set it, for example to 64"
        )
    size = image_size or height
    return size, size, channels or (own_channels if own_channels in MODES else max(MODES))


def split_names(builder: Builder) -> dict[str, str]:
    """TFDS's split for each of ours: `train`, and `test` if one is held out."""
    own = builder.info.splits
    if "train" not in own:
        raise ValueError(
            f"data set {builder.name} has no split `train`, only {', '.join(own)}; choose another "
            "data.name"
        )
    held_out = [name for name in HELD_OUT if name in own]
    return {"train": "train"} | ({"test": held_out[0]} if held_out else {})


def _features_of(builder: Builder, kind: type) -> list[str]:
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        return []
    return sorted(name for name, feature in features.items() if type(feature) is kind)


def _split_source(
    builder: Builder,
    split: str,
    image: str,
    label: str,
    shape: tuple[int, int, int],
    background: Color | None,
) -> Source:
    """A split to decode. background: composites transparent pixels; None drops alpha channels."""
    records = builder.as_data_source(split)

    def read(i: int) -> tuple[np.ndarray, int]:
        try:
            record = records[i]
            found = record[image]
            opaque = found if background is None else composite_array(found, background)
            pixels = fit_array(opaque, shape[0], shape[2])
        except Exception as error:  # ArrayRecord and TFDS's decoders raise any exception
            raise ValueError(
                f"image {i} of {builder.name} {split} cannot be read ({_first_line(error)}); "
                f"{_redo_command(builder)}"
            ) from error
        return pixels, int(record[label]) if label else NULL_LABEL

    return each_image(len(records), read)


def _redo_command(builder: Builder) -> str:
    """How to prepare the files again; TFDS writes none into an existing folder."""
    return f"delete {builder.data_path} and run main.py --mode=prepare with the same --config"


def _preparation_error(name: str, root: Path, error: BaseException) -> str:
    if any(isinstance(e, ImportError) and "tensorflow" in str(e) for e in _causes(error)):
        return (
            f"TFDS prepares {name} with TensorFlow: pip install tensorflow-cpu and prepare again "
            f"(downloads are kept in {root / 'downloads'}); training does not need TensorFlow"
        )
    return f"TFDS could not prepare {name} under {root}: {_first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(" .:")
