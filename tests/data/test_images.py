"""Sets of images to look at layers with."""

import io

import pytest

pytest.importorskip("numpy", reason="images need numpy")
pytest.importorskip("PIL", reason="images need Pillow")

import numpy as np
from PIL import Image

from ilm_plugins.data.images import open_images
from ilm_plugins.errors import UserError


def picture(value, height=3, width=2):
    return np.full((height, width, 3), value, np.uint8)


def write(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(value)).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    for name, values in {"dog": (1, 2), "cat": (3,)}.items():
        for value in values:
            write(tmp_path / "set" / name / f"{value}.png", value)
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    write(tmp_path / "set" / "cat" / "more" / "4.PNG", 4)
    return tmp_path / "set"


def test_class_folders(classes):
    images = open_images(classes)
    assert list(images.names) == ["cat/3.png", "cat/more/4.PNG", "dog/1.png", "dog/2.png"]
    assert list(images.labels) == [0, 0, 1, 1] and list(images.classes) == ["cat", "dog"]
    assert [image[0, 0, 0] for image in images.batches(4).__next__()] == [3, 4, 1, 2]
    assert images.class_of(2) == "dog" and images.caption(1) == "cat\n4.PNG"
    assert [len(batch) for batch in images.batches(3)] == [3, 1]


def test_a_flat_folder_has_no_classes(classes):
    images = open_images(classes / "dog")
    assert list(images.names) == ["1.png", "2.png"] and images.labels is None
    assert images.class_of(0) == "" and images.caption(0) == "1.png"


def test_a_limit_is_spread_over_all(classes):
    images = open_images(classes, limit=2)
    assert list(images.names) == ["cat/3.png", "dog/1.png"] and list(images.labels) == [0, 1]
    assert len(open_images(classes, limit=9)) == 4
    assert len(open_images(classes / "dog", limit=1)) == 1


def test_classes_are_chosen_by_name_and_then_limited(classes):
    images = open_images(classes, classes=["dog", "cat"])
    assert list(images.classes) == ["dog", "cat"] and list(images.labels) == [1, 1, 0, 0]
    images = open_images(classes, limit=1, classes=["dog"])
    assert list(images.names) == ["dog/1.png"] and images.class_of(0) == "dog"
    with pytest.raises(UserError, match="set has no class 'dogs'; near ones are dog, cat"):
        open_images(classes, classes=["dogs"])


def test_a_packed_archive(tmp_path):
    files = []
    for value in (0, 200):
        file = io.BytesIO()
        Image.fromarray(picture(value, 8, 8)).save(file, "JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    archive = {"jpeg": np.concatenate(files), "offsets": offsets, "labels": np.array([1, 0])}
    np.savez(tmp_path / "test.npz", classes=np.array(["a", "b"]), **archive)
    images = open_images(tmp_path / "test.npz")
    assert (
        images.labels == [1, 0] and images.class_of(0) == "b" and list(images.names) == ["0", "1"]
    )
    assert list(open_images(tmp_path / "test.npz", classes=["b"]).names) == ["0"]
    assert images[1].shape == (8, 8, 3) and abs(int(images[1].mean()) - 200) < 3
    with pytest.raises(UserError, match="No such file"):
        open_images(tmp_path / "train.npz")


def test_images_are_upright_and_in_colour(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    write(tmp_path / "a.jpg", 9, exif=exif)
    Image.fromarray(picture(5)[..., 0]).save(tmp_path / "b.png")
    images = open_images(tmp_path)
    assert images[0].shape == (2, 3, 3) and images[1].shape == (3, 2, 3)


def test_a_class_may_be_a_link(tmp_path, classes):
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in classes.iterdir():
        (linked / folder.name).symlink_to(folder)
    found, expected = open_images(linked), open_images(classes)
    assert found.names == expected.names and found.labels == expected.labels


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.float32, "F")])
def test_values_of_more_than_8_bits_are_refused(tmp_path, dtype, mode):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8)).save(path)
    words = f"deep.tif is unreadable .its values are of mode '{mode}', expected 8 bits; convert it"
    with pytest.raises(UserError, match=words):
        open_images(tmp_path)[0]


def test_hidden_folders_are_no_classes(tmp_path):
    names = ("cat/a.png", "cat/._b.png", "cat/.trash/c.png", ".ipynb_checkpoints/d.png", ".e.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, 5)
    found = open_images(tmp_path)
    assert found.names == ["cat/a.png"] and list(found.classes) == ["cat"]


def test_mistakes(tmp_path, classes):
    with pytest.raises(UserError, match="no such folder; give a folder of images, or a packed"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no image there; expected \.jpg"):
        open_images(tmp_path / "empty")
    write(classes / "5.png", 5)
    with pytest.raises(UserError, match=r"holds images, such as 5\.png, and folders of images"):
        open_images(classes)
    (classes / "dog" / "1.png").write_bytes(b"no image")
    images = open_images(classes / "dog")
    with pytest.raises(UserError, match=r"dog/1\.png is unreadable \(.*fix or remove it"):
        images[0]
