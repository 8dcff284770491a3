"""The generated dataset: scenes, what is written of them, and when."""

import json

import pytest

pytest.importorskip("PIL", reason="needs Pillow, of the extra ilm_plugins[data]")
pytest.importorskip("pycocotools", reason="needs pycocotools")

import numpy as np
import pycocotools.mask
from PIL import Image
from pycocotools.coco import COCO

from ilm_plugins.__main__ import main
from ilm_plugins.errors import UserError
from ilm_plugins.shapes import dataset as shapes
from ilm_plugins.shapes.dataset import ensure_shapes

SMALL = {"num_training": 2, "num_validation": 1, "size": 64}

# pycocotools' own, on every decoded mask.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def scenes():
    return [shapes.make_scene(0, "training", index) for index in range(100)]


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_scene_depends_on_seed_split_and_index():
    arguments = [(0, "training", 0), (1, "training", 0), (0, "validation", 0), (0, "training", 1)]
    photos = [shapes.make_scene(*each).photo for each in arguments]
    assert np.array_equal(photos[0], shapes.make_scene(*arguments[0]).photo)
    assert all((photos[0] != other).any() for other in photos[1:])


@pytest.mark.parametrize("size", [64, 128])
def test_polygons_boxes_and_masks_agree(size):
    for index in range(20):
        scene = shapes.make_scene(5, "validation", index, size)
        labels = np.zeros_like(scene.mask)
        for annotation in scene.annotations:
            polygon = annotation["segmentation"]
            coded = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygon, size, size))
            drawn = pycocotools.mask.decode(coded).astype(bool)
            labels[drawn] = annotation["category_id"]
            points = np.reshape(polygon, (-1, 2))
            corner, extent = np.split(np.array(annotation["bbox"]), 2)
            np.testing.assert_allclose([points.min(0), points.max(0)], [corner, corner + extent])
            (x, y), (u, v) = points.T, np.roll(points, -1, 0).T
            # By an eighth of a pixel along the outline, due to rasterization.
            assert abs(annotation["area"] - (x @ v - y @ u) / 2) < np.hypot(u - x, v - y).sum() / 8
        # The outline runs through these pixels, of which a rasterizer may take either half.
        assert (labels != scene.mask).mean() < 0.02


#: The numbers of images that are written.
COUNTS = {"training": 3, "validation": 2}
every_split = pytest.mark.parametrize("split", COUNTS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small dataset of the seed 3."""
    numbers = {f"num_{split}": count for split, count in COUNTS.items()}
    return shapes.write_shapes(tmp_path_factory.mktemp("written"), seed=3, **numbers)


def scenes_of(split):
    return [shapes.make_scene(3, split, index) for index in range(COUNTS[split])]


def opened(path):
    return np.asarray(Image.open(path), int)


@every_split
def test_pycocotools_reads_the_annotations(written, split):
    coco = COCO(written / "annotations" / f"instances_{split}.json")
    assert coco.getImgIds() == list(range(COUNTS[split]))
    for index, scene in enumerate(scenes_of(split)):
        assert coco.loadAnns(coco.getAnnIds(index)) == scene.annotations


@every_split
def test_annotations_have_numbers_of_their_own_from_1_on(written, split):
    """pycocotools takes the number 0 for no match."""
    ids = COCO(written / "annotations" / f"instances_{split}.json").getAnnIds()
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 1


@every_split
def test_masks_are_those_of_the_scenes(written, split):
    for index, scene in enumerate(scenes_of(split)):
        mask = opened(written / f"annotations/{split}/{index:06d}.png")
        assert np.array_equal(mask, scene.mask)


@every_split
def test_pairs_have_the_photo_beside_its_mask_in_colours(written, split):
    for index, scene in enumerate(scenes_of(split)):
        photo, colours = np.split(opened(written / f"pairs/{split}/{index:06d}.jpg"), 2, 1)
        assert abs(photo - scene.photo).mean() < 4
        distances = np.linalg.norm(colours[..., None, :] - shapes.PALETTE.astype(int), axis=-1)
        assert (distances.argmin(-1) == scene.mask).mean() > 0.995


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "_write_json", None)
    with pytest.raises(TypeError):
        shapes.write_shapes(tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_generated_only_in_a_folder_called_shapes(tmp_path):
    with pytest.raises(UserError, match="only in a folder called 'shapes'"):
        ensure_shapes(tmp_path / "mine", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small(tmp_path):
    """A root with a small dataset."""
    ensure_shapes(tmp_path / "shapes", **SMALL)
    return tmp_path


def test_a_dataset_of_the_same_settings_is_kept(small):
    before = contents(small)
    shapes.write_shapes(small, **SMALL)
    assert contents(small) == before


def test_a_dataset_of_other_settings_is_kept_with_an_error(small):
    before = contents(small)
    with pytest.raises(UserError, match="delete the folder or choose another root"):
        shapes.write_shapes(small, **{**SMALL, "seed": 1})
    assert contents(small) == before


#: The words of a small dataset, without the seed.
WORDS = "make-shapes", "--num-training", "2", "--num-validation", "1", "--size", "64"


def test_the_command_writes_a_dataset_of_its_options(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main([*WORDS, "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/shapes: 2 training and 1 validation images\n"
    manifest = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert (manifest["seed"], manifest["size"], manifest["num_training"]) == (7, 64, 2)
