"""Samples of others are read as they are, and refused with the remedy where they cannot be."""

import io
import zipfile

import numpy as np
import pytest
from PIL import ExifTags, Image

from fewstep.eval.given import read_samples

BYTES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
GREY = BYTES[..., :1]
LABELS = np.arange(6) % 3


def write_pictures(folder, images, name="{:02d}.png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            folder / name.format(i)
        )
    return folder


def write_zip(path, images):
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(images):
            Image.fromarray(image).save(content := io.BytesIO(), "PNG")
            archive.writestr(f"{i}.png", content.getvalue())
    return path


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("images", [BYTES, GREY])
def test_every_form_gives_the_same_samples(tmp_path, images):
    np.save(tmp_path / "x.npy", images)
    places = [
        images,
        images.copy(),
        tmp_path / "x.npy",
        save(tmp_path / "ours.npz", x=images, y=LABELS),
        save(tmp_path / "adm.npz", arr_0=images, arr_1=LABELS),
        save(tmp_path / "other.npz", pictures=images, steps=np.int32(4)),
        write_pictures(tmp_path / "folder" / "0", images).parent,
    ]
    for place in places:
        given = read_samples(place)
        np.testing.assert_array_equal(given.images[:], images)
        np.testing.assert_array_equal(given.images[2:4], images[2:4])
        assert given.shape == images.shape[1:] and len(given.images) == 6
    assert read_samples(write_zip(tmp_path / "x.zip", BYTES)).images[5:].tolist()


def test_labels_are_those_of_the_file(tmp_path):
    for name, labels in (("y", LABELS), ("arr_1", LABELS.astype(np.int64))):
        place = save(tmp_path / f"{name}.npz", arr_0=BYTES, **{name: labels})
        np.testing.assert_array_equal(read_samples(place).labels, LABELS)
    drawn = write_pictures(tmp_path / "drawn", BYTES, "{:06d}-label_2.png")
    assert read_samples(drawn).labels.tolist() == [2] * 6
    assert read_samples(BYTES).labels is None
    assert read_samples(BYTES, labels=np.full(6, -1)).labels is None  # of a run without labels
    assert read_samples(drawn, labels=LABELS).labels.tolist() == LABELS.tolist()


FAULTS = {
    "floats": (BYTES / 255, r"float64 in \[0, 1\]: use np.round\(255 \* x\).astype\(np.uint8\)"),
    "signed": (BYTES / 127.5 - 1, r"in \[-1, 1\]: use np.round\(127.5 \* \(x \+ 1\)\)"),
    "wide": (BYTES.astype(np.int64), r"int64 in \[0, 255\]: use np.round\(x\)"),
    "wider": (BYTES * 9.0, r"float64 in \[.*\]: scale it to bytes"),
    "nan": (np.full((6, 4, 4, 3), np.nan), "not finite"),
    "first": (BYTES.transpose(0, 3, 1, 2), r"\[N, C, H, W\].*x.transpose\(0, 2, 3, 1\)"),
    "flat": (BYTES[..., 0], r"use x\[..., None\]"),
    "black": (BYTES // 255, "no value above 1"),
    "alpha": (np.ones((6, 4, 4, 4), np.uint8), "with C 1 or 3"),
    "few": (BYTES[:4], "has 4 sample"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_sample_is_refused_with_the_remedy(name, tmp_path):
    array, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        read_samples(array)
    with pytest.raises(ValueError, match=message):
        read_samples(save(tmp_path / "x.npz", arr_0=array))


def test_files_that_hold_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--samples=.*nowhere does not exist"):
        read_samples(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="no pictures; passed over 1"):
        read_samples(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"has mu \[2\]; name its samples arr_0"):
        read_samples(save(tmp_path / "mu.npz", mu=np.zeros(2)))
    with pytest.raises(ValueError, match="has no arrays"):
        read_samples(save(tmp_path / "none.npz"))
    (tmp_path / "x.npz").write_bytes(b"no zip")
    (tmp_path / "x.npy").write_bytes(b"no array")
    for name in ("x.npz", "x.npy"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_samples(tmp_path / name)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match="none of a folder of pictures, .npz, .npy, .zip"):
        read_samples(tmp_path / "x.txt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is a run and not samples; use --mode=evaluate"):
        read_samples(tmp_path / "run")


def test_pictures_must_be_alike_and_whole(tmp_path):
    folder = write_pictures(tmp_path / "sizes", [*BYTES, np.zeros((5, 4, 3), np.uint8)])
    with pytest.raises(ValueError, match="sizes/06.png is 5 x 4 x 3, and the first picture is 4"):
        read_samples(folder).images[:]
    folder = write_pictures(tmp_path / "colours", [*GREY, BYTES[0]])
    with pytest.raises(ValueError, match="colours/06.png is 4 x 4 x 3, and .* is 4 x 4 x 1"):
        read_samples(folder).images[:]
    (tmp_path / "sizes" / "06.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="sizes/06.png cannot be read"):
        read_samples(tmp_path / "sizes").images[:]
    (tmp_path / "sizes" / "00.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="sizes/00.png cannot be read"):
        read_samples(tmp_path / "sizes")


def test_pictures_that_reading_would_change_are_refused(tmp_path):
    folder = write_pictures(tmp_path / "x", BYTES)
    opaque = np.concatenate([BYTES[0], np.full_like(GREY[0], 255)], axis=-1)
    Image.fromarray(opaque).save(folder / "00.png")
    np.testing.assert_array_equal(read_samples(folder).images[:], BYTES)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 3
    Image.fromarray(BYTES[0]).save(folder / "00.png", exif=turned)
    with pytest.raises(ValueError, match="x/00.png has a tag that turns it, which reading it"):
        read_samples(folder)
    Image.fromarray(GREY[0, ..., 0].astype(np.uint16)).save(folder / "00.png")
    with pytest.raises(ValueError, match="has 16 bits, .*; save samples in 8 bits, grey or RGB"):
        read_samples(folder)
    Image.fromarray(opaque // 2).save(folder / "00.png")
    with pytest.raises(ValueError, match="x/00.png has transparent pixels, which"):
        read_samples(folder)


@pytest.mark.parametrize("labels", [LABELS[:5], LABELS / 2, LABELS[:, None]])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="give a whole number for each of the 6 samples"):
        read_samples(BYTES, labels)
