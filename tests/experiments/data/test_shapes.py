"""The generated dataset: scenes, what is written of them, and when."""

import json
from collections import Counter
from functools import partial

import pytest

pytest.importorskip("PIL", reason="needs Pillow, of the extra ilm_plugins[data]")
pytest.importorskip("pycocotools", reason="needs pycocotools")

import numpy as np
import pycocotools.mask
from PIL import Image
from pycocotools.coco import COCO

from ilm_plugins.__main__ import main
from ilm_plugins.cli import parsers
from ilm_plugins.errors import UserError
from ilm_plugins.experiments.data import shapes
from ilm_plugins.experiments.data.shapes import ensure_shapes

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


def test_objects_of_all_classes_are_apart(scenes):
    every = [annotation for scene in scenes for annotation in scene.annotations]
    counts = Counter(a["category_id"] for a in every)
    corners = {(a["category_id"], len(a["segmentation"][0]) // 2) for a in every}
    assert corners > {(2, 4), (3, 3), (4, 10)} and len(corners) == 4  # circles have many
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 0.15 * counts.total()
    assert {len(scene.annotations) for scene in scenes} <= {1, 2, 3, 4, 5, 6}
    for scene in scenes:
        assert scene.photo[scene.mask == 0].mean() < 100 < scene.photo[scene.mask > 0].mean()
        assert scene.photo.shape == (128, 128, 3) and scene.photo.dtype == np.uint8
        boxes = np.array([a["bbox"] for a in scene.annotations])
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        assert low.min() >= 0 and high.max() <= 128
        overlaps = ((low[:, None] < high) & (low < high[:, None])).all(-1)
        assert overlaps.sum() == len(boxes)  # of each with itself


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


def test_what_is_written_can_be_read(tmp_path):
    folder = shapes.write_shapes(tmp_path, num_training=3, num_validation=2, seed=3)
    for split, count in (("training", 3), ("validation", 2)):
        coco = COCO(folder / "annotations" / f"instances_{split}.json")
        names = [category["name"] for category in coco.loadCats([1, 2, 3, 4])]
        assert names == list(shapes.CLASSES) and coco.getImgIds() == list(range(count))
        ids = coco.getAnnIds()
        assert len(set(ids)) == len(ids) and min(ids) >= 1
        for index in range(count):
            scene = shapes.make_scene(3, split, index)
            assert coco.loadAnns(coco.getAnnIds(index)) == scene.annotations
            paths = (f"images/{split}/{index:06d}.jpg", f"annotations/{split}/{index:06d}.png")
            photo, mask = (np.asarray(Image.open(folder / path), int) for path in paths)
            assert np.array_equal(mask, scene.mask) and abs(photo - scene.photo).mean() < 4
            pair = np.asarray(Image.open(folder / f"pairs/{split}/{index:06d}.jpg"), int)
            left, right = np.split(pair, 2, 1)
            assert abs(left - scene.photo).mean() < 4
            distances = np.linalg.norm(right[..., None, :] - shapes.PALETTE.astype(int), axis=-1)
            assert (distances.argmin(-1) == scene.mask).mean() > 0.995


def test_a_killed_run_leaves_no_part_and_the_next_one_writes_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_write_json", None)
        with pytest.raises(TypeError):
            shapes.write_shapes(tmp_path, **SMALL)
    (tmp_path / ".shapes-killed" / "shapes" / "images").mkdir(parents=True)
    shapes.write_shapes(tmp_path, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shapes-killed", "shapes"]


def test_what_exists_is_kept(tmp_path):
    write = partial(shapes.write_shapes, tmp_path)
    for wrong in {"num_training": 0}, {"size": 63}, {"seed": -1}:
        with pytest.raises(UserError, match="seed 0 or more"):
            write(**{**SMALL, **wrong})
    with pytest.raises(UserError, match="only in a folder called 'shapes'"):
        ensure_shapes(tmp_path / "mine", **SMALL)
    assert not list(tmp_path.iterdir())
    ensure_shapes(tmp_path / "shapes", **SMALL)
    before = contents(tmp_path)
    write(**SMALL)
    with pytest.raises(UserError, match="delete the folder or choose another root"):
        write(**{**SMALL, "seed": 1})
    # By whatever name, a complete dataset is taken as it is.
    (tmp_path / "shapes").rename(tmp_path / "mine")
    ensure_shapes(tmp_path / "mine")
    assert contents(tmp_path / "mine") == {k.removeprefix("shapes/"): v for k, v in before.items()}
    (tmp_path / "shapes").write_text("a file")
    with pytest.raises(UserError, match="delete the folder or choose another root"):
        write(**SMALL)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    defaults = {"root": tmp_path, **shapes.write_shapes.__kwdefaults__}
    assert {**vars(parsers.make_shapes([])), "progress": iter} == defaults
    argv = ["--num-training", "2", "--num-validation", "1", "--size", "64"]
    assert main(["make-shapes", *argv, "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/shapes: 2 training and 1 validation images\n"
    manifest = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert (manifest["seed"], manifest["size"], manifest["num_training"]) == (7, 64, 2)
    assert main(["make-shapes", *argv]) == 2 and "'seed': 0" in capsys.readouterr().err
