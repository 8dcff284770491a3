"""Folders of images to look at layers with."""

import pytest

pytest.importorskip("PIL", reason="images need Pillow")

import numpy as np
from PIL import Image

from ilm_plugins.errors import UserError
from reproduction.analysis.images import open_images


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 2, 3), value, np.uint8)).save(path)


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


@pytest.mark.parametrize(
    "path, words",
    [("nowhere", "no such folder"), ("empty", "no image"), ("set", "and folders")],
)
def test_a_folder_that_is_none_of_images_is_told(tmp_path, classes, path, words):
    (tmp_path / "empty").mkdir()
    write(classes / "5.png", 5)
    with pytest.raises(UserError, match=words):
        open_images(tmp_path / path)
