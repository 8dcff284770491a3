"""Images to analyze: a folder, with or without class folders, or a packed archive."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from .packed import read_packed

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as RGB, turned upright by its EXIF orientation.

    Raises:
        OSError: the file is missing or not an image, or a value has more than 8 bits.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut all values off at 255
            raise OSError(f"its values are of mode {image.mode!r}, expected 8 bits; convert it")
        return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Images:
    """A sequence of images; files are decoded when indexed.

    Attributes:
        names: file names relative to the folder, or "0", "1", ... for images of an archive.
        labels: class of each image, an index of ``classes``; None without classes.
        classes: names of the classes; empty without classes.
        sources: files, or decoded images, (H, W, 3) RGB uint8.
    """

    names: Sequence[str]
    labels: Sequence[int] | None
    classes: Sequence[str]
    sources: Sequence[Path | np.ndarray]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return an image as (H, W, 3) RGB uint8, turned upright by its EXIF orientation.

        A decoded image is returned as it is, not as a copy.

        Raises:
            UserError: the file is missing or unreadable.
        """
        source = self.sources[index]
        if isinstance(source, np.ndarray):
            return source
        try:
            return np.asarray(read_image(source))
        except Exception as error:  # a broken file can raise anything
            raise UserError(
                f"image {source} is unreadable ({' '.join(str(error).split())}); fix or remove it"
            ) from error

    def class_of(self, index: int) -> str:
        """Return the name of an image's class; "" without classes."""
        return "" if self.labels is None else self.classes[self.labels[index]]

    def caption(self, index: int) -> str:
        """Return an image's class, if it has one, and its file name, on two lines."""
        return "\n".join(filter(None, (self.class_of(index), Path(self.names[index]).name)))

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield all images, (H, W, 3) uint8 each, in lists of ``size``; the last may be shorter."""
        for start in range(0, len(self), size):
            yield [self[i] for i in range(start, min(start + size, len(self)))]


def open_images(
    path: str | os.PathLike, limit: int | None = None, classes: Sequence[str] = ()
) -> Images:
    """List the images of a folder of class folders, a flat folder or a packed ``.npz``.

    Args:
        path: the folder, or an archive in the format of :mod:`ilm_plugins.data.packed`.
        limit: number of images to keep, evenly spaced over all (of the chosen classes), so that all
            classes are represented; default: all.
        classes: names of the classes to keep, in the order that they then have; default: all.

    Raises:
        UserError: the path does not exist, there are no images, the folder holds both images and
            class folders, the archive is invalid, or there is no class of a given name. A broken
            image file is found when indexed.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npz":
        decoded, labels, names = read_packed(path)
        images = Images([str(i) for i in range(len(decoded))], labels, names, decoded)
    else:
        images = _list_folder(path)
    if not len(images):
        raise UserError(f"{path}: no image there; expected {', '.join(ENDINGS)}, or an .npz")
    if classes:
        images = _of_classes(path, images, classes)
    if limit is None or limit >= len(images):
        return images
    return _take(images, [i * len(images) // limit for i in range(limit)])


def _of_classes(path: Path, images: Images, classes: Sequence[str]) -> Images:
    """Return the images of some classes, given by name; ``path`` is for the message.

    Raises:
        UserError: a class is unknown, or the images have no classes.
    """
    for name in classes:
        if name not in images.classes:
            near = difflib.get_close_matches(name, images.classes, 4, 0) or ["none"]
            raise UserError(f"{path} has no class {name!r}; near ones are {', '.join(near)}")
    classes = tuple(dict.fromkeys(classes))
    kept = _take(images, [i for i in range(len(images)) if images.class_of(i) in classes])
    labels = [classes.index(kept.class_of(i)) for i in range(len(kept))]
    return Images(kept.names, labels, classes, kept.sources)


def _take(images: Images, chosen: Sequence[int]) -> Images:
    """Return the images of some indices."""
    names, labels, sources = (
        None if items is None else [items[i] for i in chosen]
        for items in (images.names, images.labels, images.sources)
    )
    return Images(names, labels, images.classes, sources)


def _list_folder(path: Path) -> Images:
    """List the images below a folder, sorted by path; folders directly in it are classes.

    Files are images by the end of their name, at any depth. Files and folders whose names begin
    with a dot are left out. A folder without images is no class; without any images at all, the
    list is empty. A class may be a link to a folder; links within a class are not followed.

    Raises:
        UserError: the folder is missing, or holds both images and class folders.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder of images, or a packed .npz")
    within = (p for child in path.iterdir() for p in (child, *child.rglob("*")))
    files = sorted(
        p
        for p in within
        if p.suffix.lower() in ENDINGS
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    names = [str(p.relative_to(path)) for p in files]
    in_classes = [p.parent != path for p in files]
    if any(in_classes) and not all(in_classes):
        raise UserError(
            f"{path} holds images, such as {names[in_classes.index(False)]}, and folders of "
            "images; give a folder of class folders, or one of images alone"
        )
    if not any(in_classes):
        return Images(names, None, (), files)
    classes = sorted({Path(name).parts[0] for name in names})
    labels = [classes.index(Path(name).parts[0]) for name in names]
    return Images(names, labels, classes, files)
