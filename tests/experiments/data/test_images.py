"""Folders of images to look at layers with."""

import pytest

pytest.importorskip("PIL", reason="images need Pillow")

import numpy as np
from PIL import Image

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


def test_class_folders_and_flat_ones(classes, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(classes / name)
    for folder in (classes, tmp_path / "linked"):
        images = open_images(folder)
        assert images.names == ["cat/3.png", "cat/more/4.PNG", "dog/1.png", "dog/2.png"]
        assert images.labels == [0, 0, 1, 1] and images.classes == ("cat", "dog")
        assert [[i[0, 0, 0] for i in batch] for batch in images.batches(3)] == [[3, 4, 1], [2]]
        assert images.class_of(2) == "dog"
    flat = open_images(classes / "dog")
    assert flat.names == ["1.png", "2.png"] and flat.labels is None
    assert flat.class_of(0) == ""


def test_a_choice_of_classes_and_a_limit_spread_over_all(classes):
    assert open_images(classes, limit=2).names == ["cat/3.png", "dog/1.png"]
    assert len(open_images(classes, limit=9)) == 4
    images = open_images(classes, classes=["dog", "cat"])
    assert images.classes == ("dog", "cat") and images.labels == [1, 1, 0, 0]
    images = open_images(classes, limit=1, classes=["dog"])
    assert images.names == ["dog/1.png"] and images.class_of(0) == "dog"
    with pytest.raises(UserError, match="no class 'dogs'; near ones are dog, cat"):
        open_images(classes, classes=["dogs"])


def test_images_are_upright_in_colour_and_of_8_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    write(tmp_path / "a.jpg", 9, exif=exif)
    Image.new("L", (2, 3)).save(tmp_path / "b.png")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "c.tif")
    images = open_images(tmp_path)
    assert images[0].shape == (2, 3, 3) and images[1].shape == (3, 2, 3)
    with pytest.raises(UserError, match="mode 'I;16', expected 8 bits"):
        images[2]


def test_mistakes(tmp_path, classes):
    (tmp_path / "empty").mkdir()
    write(classes / "5.png", 5)
    for path, words in (("nowhere", "no such folder"), ("empty", "no image"), ("set", "and folde")):
        with pytest.raises(UserError, match=words):
            open_images(tmp_path / path)
