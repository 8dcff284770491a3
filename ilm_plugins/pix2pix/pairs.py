"""Pairs of images: the input of a translation and its target.

Two layouts::

    FOLDER/name.jpg                             input and target side by side, in either order
    INPUTS/name.png, TARGETS/name.jpg           two folders, matched by name without its ending
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import ENDINGS, read_image
from ..errors import UserError

#: Which half is the input: "right-to-left" translates the right half into the left one.
DIRECTIONS = ("right-to-left", "left-to-right")

_SHOWN = 20


@dataclass(frozen=True)
class Pair:
    """The files of a pair.

    Attributes:
        name: the file name without its ending.
        input, target: the files; the same file for images side by side.
    """

    name: str
    input: Path
    target: Path


def image_files(folder: str | os.PathLike) -> list[Path]:
    """List the image files directly in a folder, sorted by name.

    Raises:
        UserError: the folder is missing or has no images, or two files have the same name but for
            the ending.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise UserError(f"{folder}: no image there; expected {', '.join(ENDINGS)}")
    twice = sorted(n for n, count in Counter(p.stem for p in files).items() if count > 1)
    if twice:
        raise UserError(f"{folder}: two files each are named {_first_items(twice)}; rename one")
    return files


def side_by_side(folder: str | os.PathLike) -> list[Pair]:
    """List the pairs of a folder in which each image has input and target as its two halves.

    Raises:
        UserError: see :func:`image_files`.
    """
    return [Pair(p.stem, p, p) for p in image_files(folder)]


def two_folders(inputs: str | os.PathLike, targets: str | os.PathLike) -> list[Pair]:
    """List the pairs of two folders, matched by file name without its ending, sorted by name.

    Raises:
        UserError: see :func:`image_files`; both folders are the same; or images have no
            counterpart (the message names up to 20).
    """
    if os.path.realpath(inputs) == os.path.realpath(targets):
        raise UserError(f"{inputs} is given twice; give the folders of two kinds of images")
    sources = {p.stem: p for p in image_files(inputs)}
    results = {p.stem: p for p in image_files(targets)}
    problems = []
    for here, there, of_there in ((sources, results, targets), (results, sources, inputs)):
        alone = [str(here[name]) for name in here if name not in there]
        if alone:
            problems.append(f"unpaired, no counterpart in {of_there}: {_first_items(alone)}")
    if problems:
        raise UserError("; ".join(problems))
    return [Pair(name, path, results[name]) for name, path in sources.items()]


def check_pairs(pairs: list[Pair]) -> None:
    """Decode all images of pairs, to find invalid ones.

    Raises:
        UserError: images are unreadable, have an odd width and so no equal halves, or differ in
            size from their counterpart; the message names up to 20.
    """
    _check_all(_pair_problem, pairs, "pairs")


def check_images(files: list[Path]) -> None:
    """Decode all image files, to find invalid ones.

    Raises:
        UserError: files are unreadable; the message names up to 20.
    """
    _check_all(_size_or_problem, files, "images")


def _check_all(problem: Callable, items: list, what: str) -> None:
    """Apply ``problem`` to all items in threads; raise UserError if it returns a str for any.

    Args:
        problem: returns why an item is invalid, as a str; anything else for a valid item.
        items: the items.
        what: the plural noun for the items in the message, which has up to 20 of the reasons.
    """
    with ThreadPoolExecutor() as pool:
        found = [words for words in pool.map(problem, items) if isinstance(words, str)]
    if found:
        raise UserError(
            f"{len(found)} of {len(items)} {what} cannot be used: {_first_items(found)}; "
            "fix or remove them"
        )


def _pair_problem(pair: Pair) -> str | None:
    """Decode a pair; return why it is invalid, in words, or None if it is valid.

    It is invalid if a file is unreadable, if one file for both has an odd width, or if two files
    differ in size.
    """
    sizes = [_size_or_problem(path) for path in dict.fromkeys((pair.input, pair.target))]
    unreadable = [words for words in sizes if isinstance(words, str)]
    if unreadable:
        return ", ".join(unreadable)
    (width, height), *others = sizes
    if not others:
        return f"{pair.input} has an odd width, {width}, hence no halves" if width % 2 else None
    if others[0] == sizes[0]:
        return None
    size = "{} x {}".format(*others[0])
    return f"{pair.input} of {width} x {height} and {pair.target} of {size} differ in size"


def _size_or_problem(path: Path) -> str | tuple[int, int]:
    """Decode an image: return its width and height, or why it is unreadable."""
    try:
        return read_image(path).size
    except Exception as error:  # a broken file can raise anything
        return f"{path} is unreadable ({' '.join(str(error).split())})"


def _first_items(items: list[str]) -> str:
    """Join up to 20 items by ", ", and add how many more there are."""
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def read_pair(pair: Pair, direction: str = DIRECTIONS[0]) -> tuple[Image.Image, Image.Image]:
    """Read the input and the target of a pair as RGB images.

    Args:
        pair: the files.
        direction: which half is the input, one of :data:`DIRECTIONS`; used for images side by side,
            which lose the last column if their width is odd.

    Raises:
        OSError: a file is missing or not an image.
    """
    image = read_image(pair.input)
    if pair.input != pair.target:
        return image, read_image(pair.target)
    given, target = (crop_half(image, side) for side in direction.split("-to-"))
    return given, target


def crop_half(image: Image.Image, side: str | None) -> Image.Image:
    """Crop the "left" or the "right" half of an image, W // 2 pixels wide; None for no crop."""
    if side is None:
        return image
    width = image.width // 2
    left = 0 if side == "left" else width
    return image.crop((left, 0, left + width, image.height))


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Convert an RGB image, (H, W, 3) uint8, to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image to a square, bicubic: (size, size, 3) uint8."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def jitter(
    images: tuple[Image.Image, ...],
    size: int,
    load_size: int,
    flip: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """Enlarge, crop and flip images, all in the same way: the pix2pix paper's augmentation.

    Args:
        images: the two images of a pair, RGB, of any size.
        size: side of the square crop in pixels.
        load_size: side in pixels of the square to which images are resized first, at least
            ``size``; their aspect ratio is not kept.
        flip: probability of a horizontal flip.
        rng: source of the random position of the crop and of the flip.

    Returns:
        The crops, (size, size, 3) uint8 each.
    """
    top, left = rng.integers(0, load_size - size, size=2, endpoint=True)
    flipped = rng.random() < flip
    crops = (resize(i, load_size)[top : top + size, left : left + size] for i in images)
    return tuple(crop[:, ::-1] if flipped else crop for crop in crops)


def image_preparation(dataset: Mapping) -> tuple[Callable[[np.ndarray], Tensor], str]:
    """Return a function that prepares an image as the data set prepares the inputs of its pairs.

    Args:
        dataset: config of :class:`~.training.PairedImages`; its ``data_prefix``, ``direction`` and
            ``size`` are read, with the defaults of that class.

    Returns:
        A function of an image, (H, W, 3) RGB uint8, to (3, size, size) uint8: for pairs side by
        side it crops the input's half; it then resizes, without augmentation. And a description of
        that in words, which also has the range -1 to 1 to which the model scales.
    """
    size = dataset.get("size", 256)
    halves = "pair_path" in (dataset.get("data_prefix") or {"pair_path": ""})
    side = dataset.get("direction", DIRECTIONS[0]).partition("-")[0] if halves else None

    def prepare(image: np.ndarray) -> Tensor:
        return to_tensor(resize(crop_half(Image.fromarray(image), side), size))

    part = f"the {side} half" if side else "whole images"
    return prepare, f"{part}, {size} x {size} pixels, -1 to 1"
