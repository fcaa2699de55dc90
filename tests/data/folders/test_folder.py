from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep import data


@pytest.fixture
def load(tmp_path):
    def load_folder(path, image_size=4, **arguments):
        arguments = {"data_dir": str(tmp_path / "arrays"), "image_size": image_size} | arguments
        return data.load_selection(data.Selection(f"folder:{path}", **arguments))

    return load_folder


def test_class_folders_are_numbered_by_sorted_name(tmp_path, load, save_png, draw_images):
    root, images = tmp_path / "set", draw_images(4, 4, 4, 3)
    save_png(root / "zebra" / "1.png", images[3])
    save_png(root / "ant" / "deeper" / "2.PNG", images[1])
    save_png(root / "ant" / "b.png", images[0])
    save_png(root / "Bee" / "x.png", images[2])
    loaded = load(root)
    assert loaded.num_classes == 3 and loaded.test is None
    assert loaded.classes == ("Bee", "ant", "zebra")
    np.testing.assert_array_equal(loaded.train.labels, [0, 1, 1, 2])  # Bee, ant, ant, zebra
    np.testing.assert_array_equal(loaded.train.images, images[[2, 0, 1, 3]])


def test_train_and_test_share_class_numbers(tmp_path, load, save_png, draw_images):
    root, images = tmp_path / "set", draw_images(3, 4, 4, 3)
    save_png(root / "train" / "a" / "0.png", images[0])
    save_png(root / "train" / "b" / "0.png", images[1])
    save_png(root / "test" / "b" / "0.png", images[2])
    loaded = load(root)
    np.testing.assert_array_equal(loaded.test.labels, [1])
    np.testing.assert_array_equal(loaded.test.images, images[2:])


def test_loose_images_are_unlabelled(tmp_path, load, save_png, draw_images):
    root, images = tmp_path / "set", draw_images(20, 4, 4)
    for i in (7 * np.arange(20) + 3) % 20:
        save_png(root / f"{i:02d}.png", images[i])
    (root / ".thumbnails").mkdir()
    (root / "._a.png").write_bytes(b"a companion file, not an image")
    loaded = load(root, channels=1)
    assert loaded.num_classes == 0 and loaded.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(loaded.train.labels, [data.NULL_LABEL] * 20)
    np.testing.assert_array_equal(loaded.train.images[..., 0], images)


@pytest.fixture(params=[False, True], ids=["ascending", "descending"])
def disk_order(monkeypatch, request):
    """A disk that lists its entries in another order than they were made in."""

    def in_order(method):
        return lambda *arguments: iter(sorted(method(*arguments), reverse=request.param))

    for name in ("iterdir", "glob", "rglob"):
        monkeypatch.setattr(Path, name, in_order(getattr(Path, name)))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("ant/1.png", "ant/b/0.png", "ant/c.png", "bee/2.png", "cat/0.png"), [0, 0, 0, 1, 2]),
        (("0.png", "1.png", "10.png", "2.png", "3.jpg"), [data.NULL_LABEL] * 5),
    ],
)
@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_the_order_of_images_is_not_the_disk_s(
    tmp_path, load, save_png, draw_images, disk_order, names, labels, parts
):
    images = np.repeat(np.repeat(draw_images(5, 1, 1, 3), 4, axis=1), 4, axis=2)
    for part in parts:
        for i in (3, 0, 2, 4, 1):
            save_png(tmp_path / "set" / part / names[i], images[i])
    loaded = load(tmp_path / "set")
    for split in (loaded.train, loaded.test)[: len(parts)]:
        np.testing.assert_array_equal(split.labels, labels)
        np.testing.assert_array_equal(split.images.max((1, 2)) // 8, images.max((1, 2)) // 8)


def test_images_are_resized_and_cropped(tmp_path, load, save_png):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    save_png(tmp_path / "set" / "a" / "wide.png", wide)
    np.testing.assert_array_equal(load(tmp_path / "set").train.images, np.full((1, 4, 4, 3), 200))


def test_a_changed_file_is_decoded_again(tmp_path, load, save_png, draw_images):
    images = draw_images(2, 4, 4, 3)
    file = save_png(tmp_path / "set" / "a" / "0.png", images[0])
    load(tmp_path / "set")
    save_png(file, images[1])
    np.testing.assert_array_equal(load(tmp_path / "set").train.images[0], images[1])


def test_a_changed_folder_is_other_data(tmp_path, load, save_png, draw_images):
    images, root = draw_images(4, 4, 4, 3), tmp_path / "set"
    for name, image in zip(("a/0", "a/1", "b/2", "b/3"), images, strict=True):
        save_png(root / f"{name}.png", image)
    before = load(root)
    (root / "b").rename(root / "c")
    renamed = load(root)
    (root / "c" / "3.png").unlink()
    fewer = load(root)
    save_png(root / "c" / "3.png", images[3])
    (root / "c").rename(root / "b")
    assert data.identity_changes(before.identity, load(root).identity) == []
    assert data.identity_changes(before.identity, renamed.identity) == [
        'classes (["a", "b"] recorded, ["a", "c"] now)'
    ]
    assert data.identity_changes(before.identity, fewer.identity)[1] == (
        "splits.train.count (4 recorded, 3 now)"
    )


def test_prepare_is_idempotent_and_load_reads_what_it_wrote(tmp_path, save_png, draw_images):
    file = save_png(tmp_path / "set" / "a" / "0.png", draw_images(1, 4, 4, 3)[0])
    arguments = {"data_dir": str(tmp_path / "arrays"), "image_size": 4}
    folder = data.prepare_dataset(data.Selection(f"folder:{file.parent.parent}", **arguments))
    written = (folder / "train_images.npy").stat()
    assert (
        data.prepare_dataset(data.Selection(f"folder:{file.parent.parent}", **arguments)) == folder
    )
    images = data.load_selection(
        data.Selection(f"folder:{file.parent.parent}", **arguments)
    ).train.images
    assert images.filename == folder / "train_images.npy"
    assert (folder / "train_images.npy").stat().st_mtime_ns == written.st_mtime_ns


def test_a_corrupt_image_is_named(tmp_path, load, save_png, draw_images):
    file = save_png(tmp_path / "set" / "a" / "broken.png", draw_images(1, 32, 32, 3)[0])
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"a/broken\.png cannot be read"):
        load(tmp_path / "set")


def test_bad_folders_are_errors(tmp_path, load, save_png, draw_images):
    pixels = draw_images(1, 4, 4, 3)[0]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        load(tmp_path / "empty")
    save_png(tmp_path / "mixed" / "a" / "0.png", pixels)
    save_png(tmp_path / "mixed" / "loose.png", pixels)
    with pytest.raises(ValueError, match=r"both images \(loose.png\) and class folders \(a\)"):
        load(tmp_path / "mixed")
    save_png(tmp_path / "hole" / "a" / "0.png", pixels)
    (tmp_path / "hole" / "b").mkdir()
    with pytest.raises(ValueError, match="hole/b has no images"):
        load(tmp_path / "hole")


def test_a_test_class_must_be_a_training_class(tmp_path, load, save_png, draw_images):
    pixels = draw_images(1, 4, 4, 3)[0]
    save_png(tmp_path / "set" / "train" / "a" / "0.png", pixels)
    save_png(tmp_path / "set" / "test" / "c" / "0.png", pixels)
    with pytest.raises(ValueError, match="other classes than .*: c"):
        load(tmp_path / "set")


@pytest.fixture
def damaged(tmp_path, save_png, draw_images):
    """A folder with 3 good images of two classes, 3 that cannot be read, and a text."""
    root = tmp_path / "set"
    for name, pixels in zip(("a/0", "a/1", "b/2"), draw_images(3, 4, 4, 3), strict=True):
        save_png(root / f"{name}.png", pixels)
    (root / "a" / "empty.png").touch()
    (root / "a" / "deep.tif").write_bytes(b"II*\0 and nothing else")
    (root / "b" / "gone.png").symlink_to("nowhere.png")
    (root / "b" / "notes.txt").write_text("text")
    return root


def test_unreadable_files_are_left_out_up_to_a_number(tmp_path, load, damaged, capsys):
    with pytest.raises(ValueError, match="1 unreadable images, and data.unreadable=0 allows none"):
        load(damaged)
    with pytest.raises(
        ValueError, match=r"3 unreadable .* allows 2: b/gone.png: a broken link.*a/deep.t"
    ):
        load(damaged, unreadable=2)
    loaded = load(damaged, unreadable=3)
    np.testing.assert_array_equal(loaded.train.labels, [0, 0, 1])
    said = capsys.readouterr().err
    assert "3 unreadable left out (b/gone.png, a/deep.tif, a/empty.png)" in said
    assert "passed over 1: 1 .txt (b/notes.txt)" in said
    # They are looked for once, and a repaired file makes other data.
    assert len([*(tmp_path / "arrays" / "unreadable").iterdir()]) == 1
    assert load(damaged, unreadable=9).identity == loaded.identity
    assert "looking for unreadable" not in capsys.readouterr().err
    (damaged / "a" / "empty.png").write_bytes((damaged / "a" / "0.png").read_bytes())
    assert len(load(damaged, unreadable=3).train.labels) == 4


def test_a_file_that_could_not_be_opened_once_is_tried_again(tmp_path, load, damaged, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.data.folders.unreadable.read_image", fail)
        with pytest.raises(ValueError, match="Permission denied"):
            load(damaged, unreadable=3)
    assert not (tmp_path / "arrays" / "unreadable").exists()
    assert len(load(damaged, unreadable=3).train.labels) == 3


def test_a_class_of_unreadable_files_alone_is_refused(damaged, load):
    (damaged / "b" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="the class of .*b/2.png has no readable image"):
        load(damaged, unreadable=9)


def test_the_background_is_part_of_the_data(tmp_path, load, save_png):
    clear = np.zeros((4, 4, 4), np.uint8)  # black, and nothing of it is seen
    save_png(tmp_path / "set" / "a.png", clear)
    assert (load(tmp_path / "set").train.images == 255).all()
    red = load(tmp_path / "set", background="red").train.images
    assert (red == [255, 0, 0]).all()
    assert (load(tmp_path / "set", decoding=1).train.images == 0).all()
    assert len([*(tmp_path / "arrays" / "arrays").iterdir()]) == 3


def test_what_was_read_is_said(tmp_path, load, save_png, draw_images, capsys):
    root, pixels = tmp_path / "set", draw_images(4, 4, 4, 4)
    for name, image in zip(("2/a", "2/b", "10/c", "2/d"), pixels, strict=True):
        save_png(root / f"{name}.png", image)
    save_png(root / "10" / "deep.png", pixels[0].astype(np.uint16)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels[0, ..., :3]).save(root / "2" / "turned.png", exif=exif)
    frames = [Image.fromarray(frame[..., :3]) for frame in pixels]
    frames[0].save(root / "2" / "frames.gif", save_all=True, append_images=frames[1:])
    load(root)
    understood, account = (
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("folder:") and "; " in line
    )
    assert understood == f"folder:{root}: class folders; 2 classes (2, 10), 7 images to train on"
    assert account == (
        f"folder:{root}: 7 images used; train: 2 (5), 10 (2); originals of 4 x 4 pixels; "
        "4 with transparency, composited on data.background; 1 turned upright by their EXIF; "
        "1 of 16 bits, scaled to 8; 1 of several frames or pages, the first read; "
        "nothing passed over"
    )


def test_a_file_that_is_no_zip_is_refused(tmp_path, load):
    (tmp_path / "set.tar").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="set.tar is neither a folder nor a .zip"):
        load(tmp_path / "set.tar")
    with pytest.raises(ValueError, match="is not a folder; data.decoding=1 reads only folders"):
        load(tmp_path / "set.tar", decoding=1)


def test_image_size_is_required(tmp_path, load, save_png, draw_images):
    save_png(tmp_path / "set" / "a" / "0.png", draw_images(1, 4, 4, 3)[0])
    with pytest.raises(ValueError, match="image_size is required"):
        load(tmp_path / "set", image_size=0)


def test_originals_and_large_numbers_of_classes_are_summed_up(tmp_path, load, save_png, capsys):
    for number in range(12):
        for copy in range(1 + number // 11):
            side = 2 + number + copy
            save_png(tmp_path / "set" / str(number) / f"{copy}.png", np.zeros((side, 20), np.uint8))
    load(tmp_path / "set")
    said = capsys.readouterr().err
    assert "train: 1 in the smallest class (0) to 2 in the largest (11); " in said
    assert "originals of 20 x 2 to 20 x 14 pixels; 2 smaller than data.image_size, enlarged" in said
