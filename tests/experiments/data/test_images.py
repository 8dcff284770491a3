"""Folders of images to look at layers with."""

import pytest

pytest.importorskip("PIL", reason="images need Pillow")

import numpy as np
from PIL import Image, ImageOps

from ilm_plugins.errors import UserError
from ilm_plugins.experiments.data.images import open_images


def write(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 2, 3), value, np.uint8)).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    for name in ("dog/1.png", "dog/2.png", "cat/3.png", "cat/more/4.PNG"):
        write(tmp_path / "set" / name, int(name[4:].removeprefix("more/")[0]))
    for hidden in ("cat/._b.png", "cat/.trash/c.png", ".checkpoints/d.png", ".e.png"):
        write(tmp_path / "set" / hidden, 9)
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "set"


@pytest.fixture
def linked(classes, tmp_path):
    """A folder of links to the folders of the classes."""
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(classes / name)
    return tmp_path / "linked"


@pytest.mark.parametrize("kind", ["classes", "linked"])
def test_folders_are_classes_of_the_images_below(request, kind):
    images = open_images(request.getfixturevalue(kind))
    assert images.names == ["cat/3.png", "cat/more/4.PNG", "dog/1.png", "dog/2.png"]
    assert images.classes == ["cat", "cat", "dog", "dog"]


def test_images_come_in_batches(classes):
    batches = open_images(classes).batches(3)
    assert [[image[0, 0, 0] for image in batch] for batch in batches] == [[3, 4, 1], [2]]


def test_a_folder_without_folders_has_no_classes(classes):
    flat = open_images(classes / "dog")
    assert flat.names == ["1.png", "2.png"]
    assert flat.classes == ["", ""]


def test_a_limit_spreads_over_all_classes(classes):
    assert open_images(classes, limit=2).names == ["cat/3.png", "dog/1.png"]


def test_a_limit_above_the_number_of_images_takes_all(classes):
    assert len(open_images(classes, limit=9)) == 4


def test_only_images_of_the_chosen_classes_are_taken(classes):
    assert open_images(classes, classes=["dog"]).names == ["dog/1.png", "dog/2.png"]


def test_a_limit_is_of_the_chosen_classes(classes):
    assert open_images(classes, limit=1, classes=["dog"]).names == ["dog/1.png"]


def test_an_unknown_class_is_told_with_near_ones(classes):
    with pytest.raises(UserError, match="no class 'dogs'; near ones are dog, cat"):
        open_images(classes, classes=["dogs"])


def test_an_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    write(tmp_path / "a.jpg", 9, exif=exif)
    assert open_images(tmp_path)[0].shape == (2, 3, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_by_pillow(tmp_path, orientation):
    """Pillow would also write the EXIF data again, which fails for some."""
    pixels, exif = np.arange(24, dtype=np.uint8).reshape(2, 4, 3), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(open_images(tmp_path)[0], expected)


def test_a_damaged_image_is_named(tmp_path):
    write(tmp_path / "a.png", 5)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:40] + b"????" + content[44:])
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        open_images(tmp_path)[0]


def test_a_gray_image_gets_three_colours(tmp_path):
    Image.new("L", (2, 3)).save(tmp_path / "b.png")
    assert open_images(tmp_path)[0].shape == (3, 2, 3)


def test_an_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "c.tif")
    with pytest.raises(UserError, match="mode 'I;16', expected 8 bits"):
        open_images(tmp_path)[0]


@pytest.mark.parametrize(
    "path, words",
    [("nowhere", "no such folder"), ("empty", "no image"), ("set", "and folders")],
)
def test_a_folder_that_is_none_of_images_is_told(tmp_path, classes, path, words):
    (tmp_path / "empty").mkdir()
    write(classes / "5.png", 5)
    with pytest.raises(UserError, match=words):
        open_images(tmp_path / path)


@pytest.mark.parametrize("content", [b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png cannot be read .*; remove or replace it"):
        open_images(tmp_path)[0]
