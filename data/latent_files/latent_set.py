"""A folder of latents that other programs have made, as a data set: `latents:FOLDER`.

Its examples are posteriors, float16 [V, M, h, w, c], as data/encoded.py stores them: V views (the
picture, and its mirror image if the files have it), and M = 2, mean and standard deviation, or
M = 1, one draw. They are converted once into arrays (data/arrays/array_cache.py), in sorted order.
It has no pictures.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fewstep.data.arrays.array_cache import file_stamps
from fewstep.data.arrays.dataset import Dataset, Posteriors
from fewstep.data.arrays.shards import each_image
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.encoded import SHARD_ROWS
from fewstep.data.latent_files.files import (
    BESIDE,
    DRAWS,
    LOG_VARIANCE,
    STD,
    Latent,
    LatentFiles,
    list_files,
    name_some,
)
from fewstep.data.latent_files.one_per_picture import numpy_files, torch_files
from fewstep.data.latent_files.prepared import PREPARED, prepared_latents
from fewstep.data.latent_files.shards import array_record_files, safetensors_files

Shape = tuple[int, ...]
# By the ends of names.
FORMS: dict[str, Callable[[Path, Sequence[str]], LatentFiles]] = {
    ".pt": torch_files,
    ".npy": numpy_files,
    ".safetensors": safetensors_files,
    ".array_record": array_record_files,
    ".arrayrecord": array_record_files,
}
ANY_CLASSES = 2**31 - 1  # the classes are those of the labels, which are known once all are read
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as autoencoders clamp them


def latent_set(path: str, posterior: str = "", writable: bool = True) -> Undecoded | Dataset:
    """The latents under `path`.

    posterior: one of POSTERIORS; "" is what the form of files says. writable: whether the folder
    may get the new stamps of files that were copied (prepared.py).

    Raises FileNotFoundError if the folder is missing, and ValueError if it has no latents, or those
    of several forms.
    """
    folder = Path(path).expanduser().absolute()
    if not path or not folder.is_dir():
        raise FileNotFoundError(
            f"folder {path!r} does not exist; give the folder of latents as latents:FOLDER"
        )
    name = f"latents:{folder.name}"
    if (folder / PREPARED).exists():
        return prepared_latents(folder, name, posterior, writable)
    found, rest = read_folder(folder)
    chosen = posterior or found.posterior
    first = stored(read_one(found, 0, folder), chosen, found.place(0))

    def read(number: int) -> tuple[np.ndarray, int]:
        latent = read_one(found, number, folder)
        array = stored(latent, chosen, found.place(number))
        check_same_shape(found, number, array.shape, first.shape)
        return array, latent.label

    passed = f"; passes over {len(rest)} other files, such as {name_some(rest)}" if rest else ""
    return Undecoded(
        name=name,
        origin=["latents", chosen, file_stamps((folder / f for f in found.files), folder)],
        image_shape=first.shape,
        num_classes=ANY_CLASSES,
        splits={"train": each_image(found.count, read)},
        understood=f"{name}: {found.words}, {found.count:,} latents, as {chosen}{passed}",
        dtype=np.dtype(np.float16),
        shard_bytes=SHARD_ROWS * first.nbytes,
        made="converted",
        opened=opened,
    )


def check_same_shape(files: LatentFiles, number: int, shape: Shape, first: Shape) -> None:
    """Raises ValueError that names the file if a latent is not of the shape of the first one."""
    if shape != first:
        raise ValueError(
            f"{files.place(number)} has a latent of {list(shape)}, and {files.place(0)} one of "
            f"{list(first)} (views, moments, height, width, channels); keep latents of one shape "
            "in a folder"
        )


def read_folder(folder: Path) -> tuple[LatentFiles, list[str]]:
    """The latents of a folder, and the files that are passed over. Raises ValueError."""
    names = list_files(folder)
    latents = [name for name in names if Path(name).name not in BESIDE]
    suffixes = Counter(Path(name).suffix for name in latents if Path(name).suffix in FORMS)
    if len(suffixes) != 1:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.items())
        raise ValueError(
            f"{folder} has {counted or 'no files of latents'}; it should have files of one form: "
            f"{', '.join(FORMS)} (docs/latents.md), or be a folder of latents by --mode=prepare"
        )
    (suffix,) = suffixes
    own = [name for name in latents if Path(name).suffix == suffix]
    check_not_above(folder, names, own)
    return FORMS[suffix](folder, own), [name for name in latents if Path(name).suffix != suffix]


def check_not_above(folder: Path, names: Sequence[str], latents: Sequence[str]) -> None:
    """Raises ValueError if labels or statistics lie beside latents deeper, and none lie here."""
    for name in names:
        inside, _, file = name.rpartition("/")
        if (
            file in BESIDE
            and file not in names
            and any(each.startswith(f"{inside}/") for each in latents)
        ):
            raise ValueError(
                f"{folder / name} is read only with the folder that it lies in; give "
                f"latents:{folder / inside}"
            )


def read_one(files: LatentFiles, number: int, folder: Path) -> Latent:
    """One latent. Raises ValueError that names the file."""
    try:
        return files.read(number)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(
            f"the latent in {folder / files.place(number)} cannot be read ({error}); restore it, "
            "or remove it with its label"
        ) from error


def stored(latent: Latent, posterior: str, place: str) -> np.ndarray:
    """A latent as it is stored, float16 [V, M, h, w, c].

    Raises ValueError that names the place, for values that are no such posterior.
    """
    views = np.asarray(latent.views)
    if views.ndim != 4 or not np.issubdtype(views.dtype, np.floating) and views.dtype.kind != "V":
        raise ValueError(
            f"{place} has {views.dtype} {list(views.shape[1:])}, no floating [channels, height, "
            "width]; restore it"
        )
    views = views.astype(np.float32)
    if not np.isfinite(views).all():
        raise ValueError(f"{place} has values that are not finite; encode that picture again")
    moments = views[:, None] if posterior == DRAWS else split_moments(views, posterior, place)
    with np.errstate(over="ignore"):  # reported below
        array = moments.transpose(0, 1, 3, 4, 2).astype(np.float16)
    if not np.isfinite(array).all():
        raise ValueError(f"{place} has values that float16 cannot hold; check how it was encoded")
    return array


def split_moments(views: np.ndarray, posterior: str, place: str) -> np.ndarray:
    """Mean and deviation [V, 2, c, h, w] from channels [V, 2c, h, w]. Raises ValueError."""
    count, channels, height, width = views.shape
    if channels % 2:
        raise ValueError(
            f"{place} has {channels} channels, which are no means and as many deviations; set "
            f"data.posterior={DRAWS} if it has the latent alone"
        )
    mean, spread = views.reshape(count, 2, channels // 2, height, width).swapaxes(0, 1)
    if posterior == STD and spread.min() < 0:
        raise ValueError(
            f"{place} has standard deviations down to {spread.min():.3g}, so they are "
            f"log-variances: set data.posterior={LOG_VARIANCE}, or {DRAWS} if all channels are the "
            "latent"
        )
    if posterior == LOG_VARIANCE and spread.min() >= 0:
        raise ValueError(
            f"{place} has no log-variance below 0, so they are standard deviations: set "
            f"data.posterior={STD}"
        )
    if posterior == LOG_VARIANCE:
        spread = np.exp(0.5 * np.clip(spread, *LOG_VARIANCE_RANGE))
    return np.stack([mean, spread], axis=1)


def opened(dataset: Dataset) -> Dataset:
    """The converted data set: its examples are posteriors, its classes those of its labels."""
    labels = dataset.train.labels
    classes = int(labels.max(initial=-1)) + 1
    return dataset._replace(num_classes=classes, moments=Posteriors(dataset.train.images, {}))
