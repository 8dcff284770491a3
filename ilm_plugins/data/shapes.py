"""`shapes`: a generated data set of circles, squares, triangles and stars.

Objects of three scales overlap and occlude each other on noise backgrounds. Colour and texture are
drawn independently of the class, so only the outline tells it. The same scenes are written as COCO
instances, as semantic masks in the ADE20K folder layout, and as side-by-side image pairs:

    ROOT/shapes/images/{training,validation}/000000.jpg            photo, RGB
    ROOT/shapes/annotations/instances_{training,validation}.json   COCO instances
    ROOT/shapes/annotations/{training,validation}/000000.png       semantic mask, 0 = background
    ROOT/shapes/pairs/{training,validation}/000000.jpg             photo left, label map right
    ROOT/shapes/shapes.json                                        manifest

Pixel coordinates: x to the right, y down; pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
Outlines have integer corners and are filled in integer arithmetic, so masks, boxes and polygons are
the same on every machine. A scene depends on (seed, split, index, size) alone: image i stays the
same however many images are written.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .classes import SHAPES

CLASSES = tuple(SHAPES)
SPLITS = ("training", "validation")
TEXTURES = ("stripes", "checks", "speckle", "gradient")

# Range of an object's nominal side as a fraction of the image side, and how often it is proposed.
# Large objects are rejected more often, so they are proposed more often than they should occur.
SCALES = {
    "small": (22 / 128, 30 / 128, 0.30),
    "medium": (34 / 128, 44 / 128, 0.34),
    "large": (50 / 128, 68 / 128, 0.36),
}

# Colours of the label map, background first: corners of the RGB cube, so that the nearest colour
# still decodes the class after JPEG compression.
PALETTE = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)

MIN_SIZE = 64
FORMAT_VERSION = 2
#: Units of a corner's coordinates in a pixel.
UNITS = 16

_MIN_OBJECTS, _MAX_OBJECTS = 4, 6
_ATTEMPTS = 100
_MIN_VISIBLE_FRACTION = 0.7
_MAX_ROTATION = math.pi / 12
# In pixels of an image of side 128; areas scale with the square of the side.
_MIN_VISIBLE_AREA = 60
_MIN_PART_AREA = 16
# Circumradius over nominal side, chosen so that the four classes look about equally large.
_RADIUS = {"circle": 0.5, "square": 0.6, "triangle": 0.64, "star": 0.62}
_STAR_INNER_RADIUS = 0.55
_JPEG = {"quality": 95, "subsampling": 0}

Colour = tuple[float, float, float]
Corners = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Texture:
    """A two-coloured pattern.

    Attributes:
        kind: one of `TEXTURES`.
        colours: two RGB colours in 0..255.
        angle: direction of the pattern in radians.
        period: wavelength (stripes, checks) or grain (speckle) in pixels; unused by gradients.
        phase: shift of the pattern in radians.
    """

    kind: str
    colours: tuple[Colour, Colour]
    angle: float
    period: float
    phase: float


@dataclass(frozen=True)
class Instance:
    """One object of a scene.

    Attributes:
        category: 1..4, one more than the position in `CLASSES`.
        corners: the outline's corners (x, y) in 1 / `UNITS` pixel, clockwise in the image; they may
            lie outside the image.
        texture: the pattern that fills the object.
    """

    category: int
    corners: Corners
    texture: Texture

    @property
    def area(self) -> float:
        """Area of the whole object in square pixels, occluded and outside parts included."""
        return _area(self.corners) / UNITS**2


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which they are painted, on a noise background.

    Attributes:
        seed, split, index: what the scene was made from, see `make_scene`.
        size: side of the square image in pixels.
        background: the two RGB colours in 0..255 between which the background varies.
        noise: standard deviation of the pixel noise, in grey levels of 0..255.
        instances: the objects, from the farthest to the nearest.
    """

    seed: int
    split: str
    index: int
    size: int
    background: tuple[Colour, Colour]
    noise: float
    instances: tuple[Instance, ...]


def make_scene(seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Compose the scene of one image.

    Args:
        seed: seed of the data set, at least 0.
        split: one of `SPLITS`.
        index: number of the image within its split, from 0.
        size: side of the image in pixels, at least `MIN_SIZE`.

    Returns:
        A scene of 4 to 6 objects, each visible to at least 70 % of its area.

    Raises:
        ValueError: if the split is unknown, or seed or index is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    rng = _rng(seed, split, index, stream=0)
    # Darker than the objects, so that their outlines are visible.
    first = rng.uniform(15, 75) + rng.normal(0, 12, 3)
    background = (_clipped_colour(first), _clipped_colour(first + rng.normal(0, 20, 3)))
    instances: tuple[Instance, ...] = ()
    while len(instances) < _MIN_OBJECTS:
        instances = _place_objects(rng, size, background)
    noise = float(rng.uniform(4, 14))
    return Scene(seed, split, index, size, background, noise, instances)


def render(scene: Scene) -> np.ndarray:
    """Paint the photo of a scene.

    Returns:
        RGB image, uint8, (size, size, 3).
    """
    rng = _rng(scene.seed, scene.split, scene.index, stream=1)
    image = _blend(scene.background, _smooth_noise(rng, scene.size))
    for instance in scene.instances:
        mask = _mask(instance.corners, scene.size)
        image[mask] = _blend(instance.texture.colours, _pattern(instance, scene.size, rng))[mask]
    image += scene.noise * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def instance_map(scene: Scene) -> np.ndarray:
    """Label every pixel with the nearest object that holds its centre.

    Returns:
        uint8, (size, size): 0 = background, i + 1 = ``scene.instances[i]``.
    """
    painted = np.zeros((scene.size, scene.size), np.uint8)
    for number, instance in enumerate(scene.instances, 1):
        painted[_mask(instance.corners, scene.size)] = number
    return painted


def semantic_mask(scene: Scene) -> np.ndarray:
    """Label every pixel with the category of its object in :func:`instance_map`.

    Returns:
        Categories, uint8, (size, size): 0 = background, 1..4 as in `CLASSES`.
    """
    categories = [0, *(instance.category for instance in scene.instances)]
    return np.array(categories, np.uint8)[instance_map(scene)]


def coco_annotations(scene: Scene) -> list[dict]:
    """Describe the visible pixels of each object in COCO's instance format.

    The polygons follow pixel edges, so rasterizing them gives the mask back. The image id is the
    scene's index. Annotation ids are derived from it and start at 1, since COCO's evaluation takes
    a matched id of 0 for no match.

    Returns:
        One JSON-ready dict per object, in painting order; integer lengths in pixels.
    """
    painted = instance_map(scene)
    annotations = []
    for position, instance in enumerate(scene.instances):
        mask = painted == position + 1
        polygons = _trace(mask)
        points = np.concatenate(polygons)
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        annotations.append(
            {
                "id": scene.index * _MAX_OBJECTS + position + 1,
                "image_id": scene.index,
                "category_id": instance.category,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": [np.ravel(polygon).tolist() for polygon in polygons],
            }
        )
    return annotations


def write_shapes(
    root: str | os.PathLike,
    *,
    num_training: int = 1000,
    num_validation: int = 200,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Path:
    """Write the data set to ROOT/shapes, or find it there.

    The files are written to a temporary folder in ROOT, which is renamed when it is complete. A run
    that is killed, or several runs at once, therefore never leave a partial data set; a killed run
    may leave a hidden folder `.shapes-*`, which is safe to delete.

    Args:
        root: folder that receives the folder `shapes`; made if missing.
        num_training, num_validation: numbers of images, at least 1.
        size: side of the images in pixels, at least `MIN_SIZE`.
        seed: at least 0.
        progress: yields the numbers of a split's images that it is given, and may report them.

    Returns:
        The folder ROOT/shapes.

    Raises:
        ValueError: if an argument is too small, or ROOT/shapes holds this data set made with other
            settings.
        FileExistsError: if ROOT/shapes is something else. Nothing that exists is ever changed.
        OSError: if ROOT cannot be written.
    """
    counts = {"num_training": num_training, "num_validation": num_validation}
    settings = {"seed": seed, "size": size, **counts}
    if seed < 0 or size < MIN_SIZE or min(counts.values()) < 1:
        raise ValueError(
            f"{_settings_text(settings)}; expected seed 0 or more, size {MIN_SIZE} or more, and at "
            "least one image of each split"
        )
    manifest = {"format": FORMAT_VERSION, **settings, "classes": list(CLASSES)}
    root = Path(root)
    folder = root / "shapes"
    if _is_written(folder, manifest):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root) as temporary:
        # The temporary folder is private to the user; the one inside has ordinary permissions.
        partial = Path(temporary) / "shapes"
        for split in SPLITS:
            _write_split(partial, split, manifest, progress)
        _write_json(partial / "shapes.json", manifest)
        try:
            os.rename(partial, folder)
        except OSError:
            # Another process may have finished first; anything else is a genuine error.
            if not _is_written(folder, manifest):
                raise
    return folder


def _is_written(folder: Path, manifest: dict) -> bool:
    """Tell whether `folder` holds the data set of `manifest` (True) or does not exist (False).

    Raises:
        ValueError, FileExistsError: if it holds anything else, see `write_shapes`.
    """
    if not os.path.lexists(folder):
        return False
    advice = "delete it or choose another root"
    try:
        found = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise FileExistsError(
            f"{folder} exists but has no readable manifest shapes.json; expected the data set with "
            f"{_settings_text(manifest)}; {advice}"
        )
    wanted = {key: value for key, value in manifest.items() if found.get(key) != value}
    if wanted:
        raise ValueError(
            f"{folder} was made with {_settings_text({key: found.get(key) for key in wanted})}; "
            f"expected {_settings_text(wanted)}; {advice}"
        )
    return True


def _settings_text(settings: dict) -> str:
    """Format settings as "key value, key value"."""
    return ", ".join(f"{key} {value!r}" for key, value in settings.items())


def _write_split(
    folder: Path, split: str, manifest: dict, progress: Callable[[range], Iterable[int]]
) -> None:
    """Write the images, masks, pairs and COCO annotations of one split into `folder`.

    Args:
        folder: the data set's folder, made if missing; it must not have the split yet.
        split: one of `SPLITS`.
        manifest: the settings of the data set: seed, size, and the number of images of each split.
        progress: see :func:`write_shapes`.
    """
    photos, masks, pairs = (folder / kind / split for kind in ("images", "annotations", "pairs"))
    for target in (photos, masks, pairs):
        target.mkdir(parents=True)
    size = manifest["size"]
    images, annotations = [], []
    for index in progress(range(manifest[f"num_{split}"])):
        scene = make_scene(manifest["seed"], split, index, size)
        name = f"{index:06d}"
        photo, mask = render(scene), semantic_mask(scene)
        pair = np.concatenate([photo, PALETTE[mask]], axis=1)
        Image.fromarray(photo).save(photos / f"{name}.jpg", **_JPEG)
        Image.fromarray(pair).save(pairs / f"{name}.jpg", **_JPEG)
        # Greyscale rather than palette: a reader that converts to grey must still get the labels.
        Image.fromarray(mask).save(masks / f"{name}.png")
        images.append({"id": index, "file_name": f"{name}.jpg", "width": size, "height": size})
        annotations += coco_annotations(scene)
    coco = {
        "info": {"description": f"shapes, {split}, seed {manifest['seed']}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category, "name": name, "supercategory": "shape"}
            for category, name in enumerate(CLASSES, start=1)
        ],
    }
    _write_json(folder / "annotations" / f"instances_{split}.json", coco)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _rng(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """Return the random generator of one image: stream 0 for the scene, stream 1 for painting."""
    entropy = [seed, SPLITS.index(split), index]
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(stream,)))


def _place_objects(
    rng: np.random.Generator, size: int, background: tuple[Colour, Colour]
) -> tuple[Instance, ...]:
    """Draw up to `_MAX_OBJECTS` random objects, each in front of the ones before it.

    A proposal that hides too much of any object is rejected, so a crowded scene may end with fewer
    objects, even fewer than `_MIN_OBJECTS`.

    Args:
        rng: source of all random choices.
        size: side of the image in pixels.
        background: the two RGB colours of the background, from which objects' colours keep apart.
    """
    ranges = [*SCALES.values()]
    count = rng.integers(_MIN_OBJECTS, _MAX_OBJECTS + 1)
    instances: list[Instance] = []
    visible: list[np.ndarray] = []
    unit = (size / 128) ** 2
    for _ in range(_ATTEMPTS):
        if len(instances) == count:
            break
        category = int(rng.integers(len(CLASSES))) + 1
        scale = rng.choice(len(ranges), p=[weight for *_, weight in ranges])
        side = size * rng.uniform(*ranges[scale][:2])
        centre = rng.uniform(0.4 * side, size - 0.4 * side, 2)
        rotation = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
        corners = _outline(CLASSES[category - 1], centre, side, rotation)
        front = _mask(corners, size)
        masks = [*(mask & ~front for mask in visible), front]
        areas = [*(other.area for other in instances), _area(corners) / UNITS**2]
        least = np.maximum(_MIN_VISIBLE_FRACTION * np.array(areas), _MIN_VISIBLE_AREA * unit)
        if (np.sum(masks, axis=(1, 2)) < least).any():
            continue
        # Reject small parts, and holes (of negative area), which COCO's polygons cannot express.
        occluded = [mask & ~front for mask in visible if (mask & front).any()]
        parts = [_area(part) for mask in (front, *occluded) for part in _trace(mask)]
        if min(parts) < _MIN_PART_AREA * unit:
            continue
        taken = [*background, *(other.texture.colours[0] for other in instances)]
        texture = _draw_texture(rng, taken, size)
        instances.append(Instance(category, corners, texture))
        visible = masks
    return tuple(instances)


def _outline(name: str, centre: np.ndarray, side: float, rotation: float) -> Corners:
    """Return the corners of an object's outline, in 1 / `UNITS` pixel.

    Args:
        name: one of `CLASSES`.
        centre: (x, y) in pixels.
        side: nominal side in pixels.
        rotation: clockwise in the image, in radians.
    """
    corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[name]
    upright = math.pi / 4 if name == "square" else -math.pi / 2
    angles = upright + rotation + np.arange(corners) * (2 * math.pi / corners)
    radii = np.full(corners, _RADIUS[name] * side)
    if name == "star":
        radii[1::2] *= _STAR_INNER_RADIUS
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return tuple((x, y) for x, y in np.rint(UNITS * points).astype(int).tolist())


def _area(corners: Corners) -> float:
    """Return a polygon's area by the shoelace formula, in squared units of its coordinates.

    It is negative if the corners run anticlockwise in the image.
    """
    x, y = np.array(corners).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@functools.lru_cache(2 * _MAX_OBJECTS)
def _mask(corners: Corners, size: int) -> np.ndarray:
    """Rasterize a polygon: (size, size) bool, True where a pixel's centre lies inside.

    Corners are in 1 / `UNITS` pixel. Results are cached, so callers must not change them.
    """
    start = np.array(corners)
    (x0, y0), (dx, dy) = (p.T[..., None] for p in (start, np.roll(start, -1, 0) - start))
    y = UNITS * np.arange(size) + UNITS // 2
    edge, row = np.nonzero((y0 <= y) != (y0 + dy <= y))
    x = (x0 + (y - y0) * dx // (dy + (dy == 0)))[edge, row]
    # Each crossing flips all pixels on its right.
    flips = np.zeros((size, size + 1), int)
    np.add.at(flips, (row, ((x + UNITS // 2) // UNITS).clip(0, size)), 1)
    return flips[:, :size].cumsum(axis=1) % 2 == 1


def _trace(mask: np.ndarray) -> list[Corners]:
    """Follow the pixel edges around each part of a mask; parts may touch each other at corners.

    Args:
        mask: (H, W) bool.

    Returns:
        For each outline its corners (x, y) in pixels, the first not repeated at the end; clockwise
        in the image, and anticlockwise around a hole. Parts that touch have outlines of their own.
    """
    # An edge is (start, direction), both complex numbers x + iy; the mask is on its right.
    edges: dict[tuple[complex, complex], None] = {}
    padded = np.pad(mask, 1)
    for direction, corner in ((1, 0), (1j, 1), (-1, 1 + 1j), (-1j, 1j)):
        outside = np.roll(padded, (int(direction.real), -int(direction.imag)), (0, 1))
        y, x = np.nonzero(padded & ~outside)
        starts = (x - 1 + 1j * (y - 1) + corner).tolist()
        edges |= {(start, direction): None for start in starts}
    outlines = []
    while edges:
        corner, direction = next(iter(edges))
        outline = []
        while (corner, direction) in edges:
            del edges[corner, direction]
            corner += direction
            turns = (turn for turn in (1j * direction, direction) if (corner, turn) in edges)
            following = next(turns, -1j * direction)
            if following != direction:
                outline.append((int(corner.real), int(corner.imag)))
            direction = following
        outlines.append(tuple(outline))
    return outlines


def _draw_texture(rng: np.random.Generator, taken: list[Colour], size: int) -> Texture:
    """Draw a random pattern whose main colour differs from the colours already `taken`.

    Of six random colours it is the farthest from them, which may still be near. `size` is the side
    of the image in pixels, with which the pattern's period scales.
    """
    # The farthest of a few random candidates: contrast is mostly strong, but sometimes weak.
    candidates = rng.uniform(95, 250, (6, 3))
    distances = np.linalg.norm(candidates[:, None] - np.array(taken), axis=-1)
    first = candidates[distances.min(axis=1).argmax()]
    second = first + rng.normal(0, 24, 3)
    return Texture(
        kind=TEXTURES[rng.integers(len(TEXTURES))],
        colours=(_clipped_colour(first), _clipped_colour(second)),
        angle=rng.uniform(0, 2 * math.pi),
        period=size / 128 * rng.uniform(4, 10),
        phase=rng.uniform(0, 2 * math.pi),
    )


def _pattern(instance: Instance, size: int, rng: np.random.Generator) -> np.ndarray:
    """Evaluate an object's texture on the whole image.

    Args:
        instance: the object; gradients span its outline.
        size: side of the image in pixels.
        rng: source of the noise of "speckle"; other kinds draw nothing from it.

    Returns:
        The share of the second colour in each pixel, float in 0..1, (size, size).
    """
    texture = instance.texture
    if texture.kind == "speckle":
        cells = math.ceil(3 * size / texture.period)
        return np.clip(0.5 + 4 * (_noise(rng, cells, size) - 0.5), 0, 1)
    points = np.array(instance.corners) / UNITS
    low, high = points.min(axis=0), points.max(axis=0)
    x, y = np.arange(size) - (low + high)[:, None] / 2
    along = math.cos(texture.angle) * x + math.sin(texture.angle) * y[:, None]
    if texture.kind == "gradient":
        return np.clip(0.5 + along / (high - low).max(), 0, 1)
    frequency = 2 * math.pi / texture.period
    wave = np.sin(frequency * along + texture.phase)
    if texture.kind == "checks":
        across = math.cos(texture.angle) * y[:, None] - math.sin(texture.angle) * x
        wave *= np.sin(frequency * across + texture.phase)
    # A steep but bounded slope gives edges without jaggies.
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _smooth_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return noise, (size, size) float in 0..1: a sum over wavelengths, long ones stronger."""
    field = sum(_noise(rng, cells, size) / cells**0.5 for cells in (3, 6, 12, 24))
    low, high = field.min(), field.max()
    return (field - low) / (high - low)


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Resize cells x cells random numbers to (size, size) float, about 0..1, bicubically."""
    grid = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _blend(colours: tuple[Colour, Colour], share: np.ndarray) -> np.ndarray:
    """Blend two RGB colours by the share (H, W) of the second: (H, W, 3) float32."""
    first, second = np.array(colours, np.float32)
    return first + share[..., None].astype(np.float32) * (second - first)


def _clipped_colour(values: np.ndarray) -> Colour:
    """Clip three values to 0..255 and return them as a tuple."""
    red, green, blue = np.clip(values, 0, 255).tolist()
    return red, green, blue
