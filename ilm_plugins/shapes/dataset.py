"""`shapes`: a generated dataset of circles, squares, triangles and stars.

Up to six objects whose boxes do not overlap, on a dark background of noise. Colours are independent
of the class, so only the outline tells it. Each scene is written as COCO instances, as a semantic
mask in ADE20K's folder layout, and as a pair of images side by side::

    ROOT/shapes/images/{training,validation}/000000.jpg            photo, RGB
    ROOT/shapes/annotations/instances_{training,validation}.json   COCO instances
    ROOT/shapes/annotations/{training,validation}/000000.png       semantic mask, 0 = background
    ROOT/shapes/pairs/{training,validation}/000000.jpg             photo left, label map right
    ROOT/shapes/shapes.json                                        manifest

Coordinates are in pixels, x to the right, y down; pixel (row i, column j) covers [j, j + 1) x
[i, i + 1). A scene depends only on (seed, split, index, size).
"""

import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..errors import UserError
from ..files import read_object

#: Class -> RGB colour, 0..255, to draw it in; from the palette of Okabe and Ito, whose colours
#: people with colour blindness can tell apart, too.
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}

CLASSES = tuple(SHAPES)
SPLITS = ("training", "validation")
# Colours of the label map, background first: corners of the RGB cube, so that the nearest colour
# still decodes the class after JPEG compression.
PALETTE = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)
MIN_SIZE = 64
FORMAT_VERSION = 3
MAX_OBJECTS = 6

# Class -> corners, first corner's angle, circumradius for a side of 1, inner radius of a star.
_OUTLINES = {
    "circle": (48, 0, 0.5, 1),
    "square": (4, math.pi / 4, 0.6, 1),
    "triangle": (3, -math.pi / 2, 0.64, 1),
    "star": (10, -math.pi / 2, 0.62, 0.55),
}
_SUBPIXELS = 8
_JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class Scene:
    """A photo, (size, size, 3) RGB uint8; its mask, (size, size) uint8; its COCO annotations."""

    photo: np.ndarray
    mask: np.ndarray
    annotations: list[dict]


def make_scene(seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Draw image ``index`` of a split; its mask has 0 for background and 1..4 for the classes."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    photo = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    boxes: list[np.ndarray] = []
    annotations = []
    for _ in range(100):
        category = int(rng.integers(len(CLASSES))) + 1
        corners = _outline(rng, CLASSES[category - 1], size)
        box = np.array([corners.min(0), corners.max(0)])
        inside = box.min() >= 1 and box.max() <= size - 1
        if not inside or any(
            (box[0] < b[1] + 2).all() and (b[0] < box[1] + 2).all() for b in boxes
        ):
            continue
        coverage = _coverage(corners, size)
        photo += coverage[..., None] * (rng.uniform(110, 250, 3) - photo)
        mask[coverage >= 0.5] = category
        boxes.append(box)
        annotations.append(
            {
                # COCO's evaluation takes a matched id of 0 for no match.
                "id": index * MAX_OBJECTS + len(boxes),
                "image_id": index,
                "category_id": category,
                "iscrowd": 0,
                "area": round(float(coverage.sum()), 2),
                "bbox": [*box[0].tolist(), *(box[1] - box[0]).round(2).tolist()],
                "segmentation": [corners.ravel().tolist()],
            }
        )
        if len(boxes) == MAX_OBJECTS:
            break
    photo += rng.uniform(4, 12) * rng.standard_normal(photo.shape)
    return Scene(photo.round().clip(0, 255).astype(np.uint8), mask, annotations)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return smooth noise between two dark colours, (size, size, 3) float."""
    first = rng.uniform(15, 75) + rng.normal(0, 12, 3)
    noise = np.zeros((size, size))
    for cells in (3, 12):
        grid = Image.fromarray(rng.random((cells, cells), np.float32))
        noise += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / 2
    return first + noise[..., None] * rng.normal(0, 20, 3)


def _outline(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Return the corners (x, y) of a class's outline at a random place, (n, 2) in pixels."""
    number, start, radius, inner = _OUTLINES[name]
    side = size * rng.uniform(0.18, 0.42)
    angles = start + rng.uniform(-1, 1) * math.pi / 12 + np.arange(number) * (2 * math.pi / number)
    radii = radius * side * np.where(np.arange(number) % 2, inner, 1)
    centre = rng.uniform(0.4 * side, size - 0.4 * side, 2)
    return (centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).round(2)


def _coverage(corners: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each pixel that a polygon covers, (size, size) float in 0..1."""
    low = np.floor(corners.min(0)).astype(int)
    width, height = (np.ceil(corners.max(0)).astype(int) - low).tolist()
    image = Image.new("L", (_SUBPIXELS * width, _SUBPIXELS * height))
    # In Pillow, integer coordinates are centres of pixels.
    points = [tuple(corner) for corner in _SUBPIXELS * (corners - low) - 0.5]
    ImageDraw.Draw(image).polygon(points, fill=255)
    coverage = np.zeros((size, size))
    drawn = np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255
    coverage[low[1] : low[1] + height, low[0] : low[0] + width] = drawn
    return coverage


def write_shapes(
    root: str | os.PathLike,
    *,
    num_training: int = 1000,
    num_validation: int = 200,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Write the dataset to ROOT/shapes, or find it there; UserError if there is anything else."""
    counts = {"num_training": num_training, "num_validation": num_validation}
    settings = {"seed": seed, "size": size, **counts}
    if seed < 0 or size < MIN_SIZE or min(counts.values()) < 1:
        raise UserError(
            f"{settings}; expected seed 0 or more, size {MIN_SIZE} or more, and at least one image "
            "of each split"
        )
    manifest = {"format": FORMAT_VERSION, **settings, "classes": list(CLASSES)}
    root = Path(root)
    folder = root / "shapes"
    if _is_written(folder, manifest):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    # The folder gets its name when it is complete, so that a killed run leaves no part of it.
    with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root) as temporary:
        # The temporary folder is private to the user; the one inside has ordinary permissions.
        partial = Path(temporary) / "shapes"
        for split in SPLITS:
            _write_split(partial, split, manifest)
        _write_json(partial / "shapes.json", manifest)
        try:
            partial.rename(folder)
        except OSError:
            # Another process may have finished first.
            if not _is_written(folder, manifest):
                raise
    return folder


def _is_written(folder: Path, manifest: dict) -> bool:
    """Return whether a folder has the dataset of a manifest; UserError if it has anything else."""
    if not os.path.lexists(folder):
        return False
    try:
        existing = read_object(folder / "shapes.json")
    except (FileNotFoundError, NotADirectoryError):
        existing = None
    if existing != manifest:
        raise UserError(
            f"{folder} exists, and is not the dataset with {manifest}: its shapes.json is "
            f"{existing}; delete the folder or choose another root"
        )
    return True


def _write_split(folder: Path, split: str, manifest: dict) -> None:
    """Write the photos, masks, pairs and COCO annotations of a split into the dataset's folder."""
    photos, masks, pairs = (folder / kind / split for kind in ("images", "annotations", "pairs"))
    for target in (photos, masks, pairs):
        target.mkdir(parents=True)
    size = manifest["size"]
    images, annotations = [], []
    for index in tqdm(range(manifest[f"num_{split}"]), split):
        scene = make_scene(manifest["seed"], split, index, size)
        name = f"{index:06d}"
        pair = np.concatenate([scene.photo, PALETTE[scene.mask]], axis=1)
        Image.fromarray(scene.photo).save(photos / f"{name}.jpg", **_JPEG)
        Image.fromarray(pair).save(pairs / f"{name}.jpg", **_JPEG)
        # Greyscale rather than palette: a reader that converts to grey must still get the labels.
        Image.fromarray(scene.mask).save(masks / f"{name}.png")
        images.append({"id": index, "file_name": f"{name}.jpg", "width": size, "height": size})
        annotations += scene.annotations
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(folder / "annotations" / f"instances_{split}.json", coco)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def ensure_shapes(folder: Path, **options: int) -> None:
    """Write `shapes` with the options of ``write_shapes``, unless the folder has a shapes.json."""
    if (folder / "shapes.json").exists():
        return
    if folder.name != "shapes":
        raise UserError(
            f"shapes is not in {str(folder)!r}, and is generated only in a folder called 'shapes'; "
            "give one"
        )
    write_shapes(folder.parent, **options)
