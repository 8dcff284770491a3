import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="needs Pillow, of the extra ilm_plugins[data]")
pytest.importorskip("pycocotools", reason="needs pycocotools")

import numpy as np
import pycocotools.mask
from PIL import Image
from pycocotools.coco import COCO

import fresh
from ilm_plugins.data import ensure_shapes, shapes

TOOL = Path(__file__).parents[2] / "tools" / "make_shapes.py"
COUNTS = {"training": 12, "validation": 5}
SETTINGS = {"num_training": 12, "num_validation": 5, "seed": 3}
SMALL = {"num_training": 1, "num_validation": 1, "size": 64}

# pycocotools' own, on every decoded mask.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def scenes():
    return [shapes.make_scene(0, "training", index) for index in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.write_shapes(tmp_path_factory.mktemp("root"), **SETTINGS)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rasterize(polygons, size):
    """The pixels that pycocotools says lie in the polygons: (size, size) bool."""
    parts = pycocotools.mask.frPyObjects(polygons, size, size)
    return pycocotools.mask.decode(pycocotools.mask.merge(parts)).astype(bool)


def alone(scene, instance):
    """The pixels of an object without the others: (size, size) bool."""
    return shapes.instance_map(replace(scene, instances=(instance,))) > 0


def corners(instance):
    """The corners of an object's outline in pixels, (n, 2)."""
    return np.array(instance.corners) / shapes.UNITS


def scale(instance):
    """The key in SCALES of an object's nominal side, in an image of 128 pixels."""
    points = corners(instance)
    radius = np.linalg.norm(points - points.mean(0), axis=1).max()
    side = radius / shapes._RADIUS[shapes.CLASSES[instance.category - 1]]
    ranges = shapes.SCALES.items()
    (name,) = (key for key, (low, high, _) in ranges if low - 0.01 < side / 128 < high + 0.01)
    return name


def test_a_scene_depends_on_seed_split_and_index():
    arguments = [(0, "training", 0), (1, "training", 0), (0, "validation", 0), (0, "training", 1)]
    made = [shapes.make_scene(*each) for each in arguments]
    assert made == [shapes.make_scene(*each) for each in arguments]
    photos = [shapes.render(scene) for scene in made]
    np.testing.assert_array_equal(photos[0], shapes.render(made[0]))
    for other in range(1, 4):
        assert made[0].instances != made[other].instances
        assert (photos[0] != photos[other]).any()


def test_an_image_does_not_depend_on_their_number(folder, tmp_path):
    fewer = shapes.write_shapes(tmp_path, num_training=4, num_validation=2, seed=3)
    expected = contents(folder)
    for name, data in contents(fewer).items():
        if not name.endswith(".json"):
            assert data == expected[name], name
    name = "annotations/instances_training.json"
    few = json.loads((fewer / name).read_text())["annotations"]
    many = json.loads((folder / name).read_text())["annotations"]
    assert few == many[: len(few)] and len(few) < len(many)


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_coco_annotations_are_valid(folder, split):
    coco = COCO(folder / "annotations" / f"instances_{split}.json")
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert names == {1: "circle", 2: "square", 3: "triangle", 4: "star"}
    assert sorted(coco.getImgIds()) == list(range(COUNTS[split]))
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(folder / "images" / split / image["file_name"]) as photo:
            assert photo.mode == "RGB"
            assert photo.size == (image["width"], image["height"]) == (128, 128)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert 4 <= len(annotations) <= 6
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 128 and 0 <= y < y + height <= 128
            assert annotation["iscrowd"] == 0 and annotation["category_id"] in names
            area = 0
            for polygon in annotation["segmentation"]:
                assert len(polygon) >= 8 and len(polygon) % 2 == 0
                px, py = np.reshape(polygon, (-1, 2)).T
                area += (px @ np.roll(py, -1) - py @ np.roll(px, -1)) / 2
            assert annotation["area"] == area >= 60
            points = np.concatenate(annotation["segmentation"]).reshape(-1, 2)
            corners = (*points.min(axis=0), *points.max(axis=0))
            assert (x, y, x + width, y + height) == corners
    ids = coco.getAnnIds()
    assert len(set(ids)) == len(ids) and min(ids) >= 1


def test_objects_occlude_each_other_but_stay_visible(scenes):
    shown = [
        annotation["area"] / instance.area
        for scene in scenes
        for instance, annotation in zip(
            scene.instances, shapes.coco_annotations(scene), strict=True
        )
    ]
    assert min(shown) >= 0.7
    assert max(shown) < 1.05
    assert 0.2 < np.mean(np.array(shown) < 0.95) < 0.7


def test_classes_scales_and_textures_all_occur(scenes):
    instances = [instance for scene in scenes for instance in scene.instances]
    classes = Counter(instance.category for instance in instances)
    scales = Counter(scale(instance) for instance in instances)
    pairs = Counter((instance.category, instance.texture.kind) for instance in instances)
    assert set(classes) == {1, 2, 3, 4} and set(scales) == set(shapes.SCALES)
    assert min(classes.values()) > 0.15 * len(instances)
    assert min(scales.values()) > 0.2 * len(instances)
    assert len(pairs) == len(shapes.CLASSES) * len(shapes.TEXTURES)
    assert {len(scene.instances) for scene in scenes} == {4, 5, 6}


def test_outlines_have_the_form_of_their_class(scenes):
    shares = {"circle": 1.0, "square": 0.637, "triangle": 0.413, "star": 0.515}
    for instance in (i for scene in scenes for i in scene.instances):
        name, points = shapes.CLASSES[instance.category - 1], corners(instance)
        radius = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
        assert instance.area / (math.pi * radius**2) == pytest.approx(shares[name], abs=0.02)


@pytest.mark.parametrize("size", [128, 200])
def test_masks_and_polygons_are_what_the_nearest_object_covers(size):
    for index in range(20):
        scene = shapes.make_scene(5, "validation", index, size)
        covered = [alone(scene, instance) for instance in scene.instances]
        for instance, mask in zip(scene.instances, covered, strict=True):
            filled = rasterize([np.ravel(corners(instance)).tolist()], size)
            assert (filled & mask).sum() / (filled | mask).sum() > 0.9
        nearest = (np.array(covered) * np.arange(1, len(covered) + 1)[:, None, None]).max(axis=0)
        found = shapes.instance_map(scene)
        np.testing.assert_array_equal(found, nearest)
        semantic = shapes.semantic_mask(scene)
        assert semantic.shape == (size, size) and semantic.dtype == np.uint8
        np.testing.assert_array_equal(semantic > 0, found > 0)
        for number, annotation in enumerate(shapes.coco_annotations(scene), 1):
            visible = rasterize(annotation["segmentation"], size)
            np.testing.assert_array_equal(visible, found == number)
            assert (semantic[visible] == annotation["category_id"]).all()


def test_masks_are_the_same_on_every_machine(scenes):
    annotations = [shapes.coco_annotations(scene) for scene in scenes]
    digest = hashlib.sha256(json.dumps(annotations).encode()).hexdigest()
    assert digest == "bac6496fc6716df5e0cf0f47a793054a931f6b6b22890df10cfe03cf1012fc76"


def test_parts_of_a_mask_are_traced_one_by_one():
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]], bool)
    corner, outside, hole = shapes._trace(mask)
    assert set(corner) == {(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)}
    assert set(outside) == {(1, 2), (4, 2), (4, 5), (1, 5)} and shapes._area(outside) == 9
    assert set(hole) == {(2, 3), (3, 3), (3, 4), (2, 4)} and shapes._area(hole) == -1


def test_the_photo_shows_what_the_mask_says(scenes):
    black, white = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    for scene in scenes[:20]:
        plain = replace(
            scene,
            background=(black, black),
            noise=0.0,
            instances=tuple(
                replace(i, texture=replace(i.texture, colours=(white, white)))
                for i in scene.instances
            ),
        )
        photo = shapes.render(plain)
        assert photo.shape == (128, 128, 3) and photo.dtype == np.uint8
        np.testing.assert_array_equal(photo[..., 0] > 127, shapes.semantic_mask(scene) > 0)


def test_objects_stand_out_from_the_background(scenes):
    contrasts = []
    for scene in scenes[:50]:
        photo, mask = shapes.render(scene).astype(float), shapes.semantic_mask(scene)
        ground = photo[mask == 0].mean(axis=0)
        for instance in scene.instances:
            colour = photo[alone(scene, instance)].mean(axis=0)
            contrasts.append(np.linalg.norm(colour - ground))
    assert np.mean(np.array(contrasts) > 50) > 0.9


def test_files_hold_the_scenes(folder):
    endings = {"images": "jpg", "annotations": "png", "pairs": "jpg"}
    for split, count in COUNTS.items():
        for kind, suffix in endings.items():
            names = sorted(path.name for path in (folder / kind / split).iterdir())
            assert names == [f"{index:06d}.{suffix}" for index in range(count)]
        for index in range(count):
            scene = shapes.make_scene(3, split, index)
            rendered, labels = shapes.render(scene).astype(int), shapes.semantic_mask(scene)
            photo, mask, pair = (
                Image.open(folder / kind / split / f"{index:06d}.{suffix}")
                for kind, suffix in endings.items()
            )
            assert mask.mode == "L"
            np.testing.assert_array_equal(mask, labels)
            left, right = np.split(np.asarray(pair, int), [128], axis=1)
            for found in (np.asarray(photo, int), left):
                assert np.abs(found - rendered).mean() < 4
            distances = np.linalg.norm(right[..., None, :] - shapes.PALETTE.astype(int), axis=-1)
            assert (distances.argmin(axis=-1) == labels).mean() > 0.995


def test_it_is_written_only_where_it_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"only in a folder called 'shapes'; give one"):
        ensure_shapes(tmp_path / "mine", **SMALL)
    assert not list(tmp_path.iterdir())
    ensure_shapes(tmp_path / "shapes", **SMALL)
    # Whatever a folder is called that has it, it is taken as it is.
    (tmp_path / "shapes").rename(tmp_path / "mine")
    ensure_shapes(tmp_path / "mine", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_complete_data_set_is_kept(folder, monkeypatch):
    monkeypatch.setattr(shapes, "_write_split", None)
    assert shapes.write_shapes(folder.parent, **SETTINGS) == folder


def test_a_crash_leaves_nothing_behind(tmp_path, monkeypatch):
    def crash(path, content):
        assert list(path.parent.rglob("*.jpg")) or list(path.parent.rglob("*.png"))
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_write_json", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            shapes.write_shapes(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".shapes-killed" / "shapes" / "images").mkdir(parents=True)
    folder = shapes.write_shapes(tmp_path, **SMALL)
    assert (folder / "shapes.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shapes-killed", "shapes"]


def test_a_concurrent_run_may_finish_first(tmp_path, monkeypatch):
    rename = shapes.os.rename

    def lose_the_race(source, target):
        shutil.copytree(source, target)
        (target / "winner").touch()
        rename(source, target)

    monkeypatch.setattr(shapes.os, "rename", lose_the_race)
    folder = shapes.write_shapes(tmp_path, **SMALL)
    assert (folder / "winner").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    rename = shapes.os.rename

    def intrude(source, target):
        target.mkdir()
        (target / "precious").touch()
        rename(source, target)

    monkeypatch.setattr(shapes.os, "rename", intrude)
    with pytest.raises(FileExistsError, match="no readable manifest"):
        shapes.write_shapes(tmp_path, **SMALL)
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("shapes", "a file"),
        ("shapes/other.txt", "no manifest"),
        *(("shapes/shapes.json", text) for text in ("", "[1]", "{not json")),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path, name, text):
    foreign = tmp_path / "shapes"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"no readable manifest.*delete it or choose"
    ) as error:
        shapes.write_shapes(tmp_path, **SMALL)
    assert "\n" not in str(error.value) and str(foreign) in str(error.value)
    assert contents(tmp_path) == before


def test_other_settings_are_refused(folder):
    before = contents(folder)
    message = "made with seed 3, num_validation 5; expected seed 9, num_validation 6; delete"
    with pytest.raises(ValueError, match=message):
        shapes.write_shapes(folder.parent, num_training=12, num_validation=6, seed=9)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "setting, value",
    [
        ("seed", -1),
        ("size", 63),
        ("num_training", 0),
        ("num_validation", -1),
    ],
)
def test_bad_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(ValueError, match=f"{setting} {value}.*; expected seed 0 or more"):
        shapes.write_shapes(tmp_path / "root", **{setting: value})
    assert not (tmp_path / "root").exists()


def test_bad_scenes_are_refused():
    with pytest.raises(ValueError, match="split is 'test'; expected one of training, validation"):
        shapes.make_scene(0, "test", 0)
    for seed, index in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="non-negative"):
            shapes.make_scene(seed, "training", index)


def test_the_module_needs_no_framework():
    code = (
        "import sys\n"
        "for name in ('torchvision', 'detectron2', 'pycocotools'):\n"
        "    sys.modules[name] = None\n"
        "from ilm_plugins.data import shapes\n"
        "assert shapes.make_scene(0, 'training', 0).instances\n"
    )
    fresh.run([sys.executable, "-c", code], check=True)


def test_command_line(tmp_path):
    command = [sys.executable, TOOL, "--root", tmp_path, "--num-training", "2", "--size", "64"]
    command += ["--num-validation", "1", "--seed"]
    done = fresh.run([*command, "7"], check=True)
    assert done.stdout == f"{tmp_path / 'shapes'}: 2 training and 1 validation images\n"
    manifest = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert (manifest["seed"], manifest["size"], manifest["num_training"]) == (7, 64, 2)

    refused = fresh.run([*command, "8"])
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("make_shapes.py: error: ")
    assert refused.stderr.count("\n") == 1 and "expected seed 8" in refused.stderr
