"""Data sets by name: ORIGINS says where each kind comes from.

none               no data set, for methods that read none; the config has sizes and classes
mixture:NAME       points of a mixture of Gaussians (data/mixtures.py); nothing to download
density:NAME       an unnormalised density (densities/table.py), and its exact samples, if any
digits             scikit-learn's 8 x 8 digits; nothing to download
fashion_mnist      Fashion-MNIST (data/fashion_mnist.py)
folder:PATH        a folder or .zip of images (data/folders/folder.py), or several, as in
                   folder:A,B; needs image_size
hf:PATH            a data set that Hugging Face's save_to_disk wrote, or of Parquet files
                   (data/folders/saved_arrow.py)
webdataset:PATTERN tar shards of images (data/folders/tar_shards.py)
latents:FOLDER     latents that were made before (data/latent_files); has no pictures
tfds:NAME or NAME  an image data set of TensorFlow Datasets (data/tfds_images.py)

A path may be the address of a bucket, such as folder:gs://bucket/pets.zip; it is copied below
data_dir when it is opened. A new kind needs a file and an entry in ORIGINS.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.buckets import fetched
from fewstep.data.arrays.array_cache import data_root
from fewstep.data.arrays.dataset import Dataset, UnknownNameError
from fewstep.data.arrays.files import claimed
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.density_points import density_dataset, density_files, density_space
from fewstep.data.digits import digits
from fewstep.data.folders.decoding import BACKGROUND, Decoding, parse_decoding
from fewstep.data.folders.folder import Wanted, folder_images
from fewstep.data.folders.saved_arrow import saved_images
from fewstep.data.folders.several import SEPARATOR, split_paths
from fewstep.data.folders.tar_shards import shard_images
from fewstep.data.latent_files.latent_set import latent_set
from fewstep.data.mixtures import mixture_dataset, mixture_space
from fewstep.data.spaces.pixels import pixel_space
from fewstep.data.spaces.space import Space
from fewstep.messages import did_you_mean, nearest_name

NONE = "none"
# NAME, NAME/CONFIG, NAME:VERSION. Others (huggingface:..., URLs) would make TFDS download code.
TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


class Selection(NamedTuple):
    """A data set, and how its images are read.

    data_dir: the folder of prepared data; "" is $FEWSTEP_DATA, else ~/.cache/fewstep.
    image_size, channels: size and channels after conversion; 0 keeps the data set's own.
    decoding, background, unreadable: how files are decoded (data/folders/decoding.py).
    posterior: what follows the means in files of latents (data/latent_files/files.py).
    """

    name: str
    data_dir: str = ""
    image_size: int = 0
    channels: int = 0
    decoding: int = 0
    background: str = BACKGROUND
    unreadable: int = 0
    posterior: str = ""

    def rules(self) -> Decoding:
        """The decoding of the files. Raises ValueError for fields out of range."""
        return parse_decoding(self.decoding, self.background, self.unreadable)


def selection_of(fields: Any) -> Selection:
    """The data set that the fields of a config's `data` name."""
    return Selection(
        fields.name,
        fields.dir,
        fields.image_size,
        fields.channels,
        fields.decoding,
        fields.background,
        fields.unreadable,
        fields.posterior,
    )


def _pixels(name: str, image_size: int, channels: int) -> Space:
    return pixel_space((image_size, image_size, channels))


def _one_path(argument: str) -> list[str]:
    return [argument]


class Origin(NamedTuple):
    """How one kind of data set is named, downloaded and opened.

    form: the form of its names, KIND or KIND:ARGUMENT.
    open: (argument or name, selection, whether data_dir is writable) -> the data set in memory, or
    one to decode.
    download: (argument or name, selection) -> None, writes the files that `open` reads; None if
    there is nothing to download.
    place: what evaluation protocols call data whose argument is a path; their images identify them,
    wherever they lie. "" for data that their name identifies.
    paths: an argument that is a place -> the paths in it; [] for one that is no place.
    space: (argument or name, image_size, channels) -> the space of the examples.
    """

    form: str
    open: Callable[[str, Selection, bool], Dataset | Undecoded]
    download: Callable[[str, Selection], None] | None = None
    place: str = ""
    paths: Callable[[str], list[str]] = _one_path
    space: Callable[[str, int, int], Space] = _pixels


def _open_none(name: str, selection: Selection, writable: bool) -> Dataset:
    raise FileNotFoundError(
        "data.name=none has no images: choose a data set, such as --config.data.name=digits, or, "
        "if the method reads none, set data.image_size, data.channels and data.num_classes"
    )


def _open_digits(name: str, selection: Selection, writable: bool) -> Dataset:
    return digits(selection.image_size, selection.channels)


def _open_mixture(name: str, selection: Selection, writable: bool) -> Dataset:
    mixture_space(name, selection.image_size, selection.channels)
    return mixture_dataset(name)


def _open_density(name: str, selection: Selection, writable: bool) -> Dataset:
    density_space(name, selection.image_size, selection.channels)
    return density_dataset(name)


def _open_folder(path: str, selection: Selection, writable: bool) -> Undecoded:
    return folder_images(_on_disk(path, selection, writable), _wanted(selection, writable))


def _open_shards(pattern: str, selection: Selection, writable: bool) -> Undecoded:
    return shard_images(_on_disk(pattern, selection, writable), _wanted(selection, writable))


def _open_saved(path: str, selection: Selection, writable: bool) -> Undecoded:
    return saved_images(_on_disk(path, selection, writable), _wanted(selection, writable))


def _wanted(selection: Selection, writable: bool) -> Wanted:
    kept = _root(selection, writable)
    return Wanted(selection.image_size, selection.channels, selection.rules(), kept)


def _root(selection: Selection, writable: bool) -> Path:
    return data_root(selection.data_dir if writable else "")


def _on_disk(argument: str, selection: Selection, writable: bool) -> str:
    """The argument of a data set with a copy in place of each address of a bucket."""
    paths = origin_of(selection.name)[0].paths(argument)
    copied = [fetched(path, _root(selection, writable), "data.name") for path in paths]
    return SEPARATOR.join(copied)


def _open_latents(path: str, selection: Selection, writable: bool) -> Dataset | Undecoded:
    return latent_set(_on_disk(path, selection, writable), selection.posterior, writable)


def _open_tfds(name: str, selection: Selection, writable: bool) -> Undecoded:
    from fewstep.data.tfds_images import tfds_images

    root = data_root(selection.data_dir)
    return tfds_images(
        _check_tfds_name(name), root, selection.image_size, selection.channels, selection.rules()
    )


def _download_tfds(name: str, selection: Selection) -> None:
    from fewstep.data.tfds_images import write_tfds

    root = data_root(selection.data_dir)
    with claimed(root):
        write_tfds(_check_tfds_name(name), root, selection.image_size, selection.channels)


def _check_tfds_name(name: str) -> str:
    if not TFDS_NAME.fullmatch(name):
        raise UnknownNameError(name)
    return name


ORIGINS = {
    NONE: Origin(NONE, _open_none),
    "mixture": Origin("mixture:NAME", _open_mixture, space=mixture_space),
    "density": Origin(
        "density:NAME",
        _open_density,
        place="a density",
        paths=density_files,
        space=density_space,
    ),
    "digits": Origin("digits", _open_digits),
    "fashion_mnist": Origin("fashion_mnist", _open_tfds, _download_tfds),
    "folder": Origin("folder:PATH", _open_folder, place="a folder of images", paths=split_paths),
    "hf": Origin("hf:PATH", _open_saved, place="a folder of images"),
    "webdataset": Origin("webdataset:PATTERN", _open_shards, place="a folder of images"),
    "latents": Origin("latents:FOLDER", _open_latents, place="a folder of latents"),
    "tfds": Origin("tfds:NAME", _open_tfds, _download_tfds),
}


def origin_of(name: str) -> tuple[Origin, str]:
    """The origin of a name, and its argument or else the name. Unknown names are TFDS's."""
    kind, colon, argument = name.partition(":")
    origin = ORIGINS.get(kind)
    if origin is None or bool(colon) != (":" in origin.form):
        return ORIGINS["tfds"], name
    return origin, argument if colon else name


def space_of(name: str, image_size: int = 0, channels: int = 0) -> Space:
    """The space of the examples of a data set, from its name and the size of its images.

    Opens nothing. Raises ValueError for an unknown name, and for sizes that its examples do not
    have.
    """
    origin, argument = origin_of(name)
    return origin.space(argument, image_size, channels)


def path_in_name(name: str) -> str:
    """The path in a name, such as PATH in folder:PATH; "" if the kind has no path."""
    origin, argument = origin_of(name)
    return argument if origin.place and origin.paths(argument) else ""


def replace_paths(name: str, change: Callable[[str], str]) -> str:
    """A name with each path in it changed; names of kinds without a path stay."""
    argument = path_in_name(name)
    if not argument:
        return name
    paths = origin_of(name)[0].paths(argument)
    return name.removesuffix(argument) + SEPARATOR.join(map(change, paths))


def protocol_name(name: str) -> str:
    """What evaluation protocols call these data: their name, or their kind if it has a path."""
    return origin_of(name)[0].place if path_in_name(name) else name


def unknown_name_message(name: str) -> str:
    """The error message for an unknown data set, with the nearest name and the forms of names."""
    from fewstep.data.tfds_images import builder_names

    forms = [origin.form for origin in ORIGINS.values()]
    known = {n: n for n in builder_names()} | {form.partition(":")[0]: form for form in forms}
    typed = origin_of(name)[1].partition(":")[0].lower()
    path = re.sub(r"^\w+:", "", name)
    nearest = f"folder:{path}" if _is_path(path) else known.get(nearest_name(typed, known), "")
    found = did_you_mean(nearest) or "."
    return (
        f"data set {name!r} does not exist{found} A name is {', '.join(forms)}, or the bare NAME "
        "of a TFDS data set"
    )


def _is_path(text: str) -> bool:
    """Whether a text is written like a path, or is that of something."""
    return bool(text) and (bool(re.match(r"[/.~]|.*\.zip$", text)) or Path(text).exists())
