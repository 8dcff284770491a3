"""Images to analyze: a folder, with or without class folders."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as RGB, turned upright by its EXIF orientation."""
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut all values off at 255
            raise UserError(
                f"{path} has values of mode {image.mode!r}, expected 8 bits; convert it"
            )
        return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Images:
    """A sequence of images, (H, W, 3) RGB uint8, decoded when indexed.

    ``labels`` has each image's index in ``classes``; without class folders it is None.
    """

    names: Sequence[str]
    labels: Sequence[int] | None
    classes: Sequence[str]
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(read_image(self.files[index]))

    def class_of(self, index: int) -> str:
        """Return the name of an image's class; "" without classes."""
        return "" if self.labels is None else self.classes[self.labels[index]]

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield all images in lists of ``size``; the last list may be shorter."""
        for start in range(0, len(self), size):
            yield [self[i] for i in range(start, min(start + size, len(self)))]


def open_images(
    path: str | os.PathLike, limit: int | None = None, classes: Sequence[str] = ()
) -> Images:
    """List the images of a folder of class folders, or of a flat folder, in the order of names.

    Only ``classes`` are kept, in this order, if given; of their images ``limit``, evenly spaced.
    """
    path = Path(path).expanduser()
    images = _list_folder(path)
    if not len(images):
        raise UserError(f"{path}: no image there; expected {', '.join(ENDINGS)}")
    for name in classes:
        if name not in images.classes:
            near = difflib.get_close_matches(name, images.classes, 4, 0) or ["none"]
            raise UserError(f"{path} has no class {name!r}; near ones are {', '.join(near)}")
    chosen = [i for i in range(len(images)) if not classes or images.class_of(i) in classes]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    kept = tuple(dict.fromkeys(classes)) or images.classes
    labels = None
    if images.labels is not None:
        labels = [kept.index(images.class_of(i)) for i in chosen]
    return Images(
        [images.names[i] for i in chosen], labels, kept, [images.files[i] for i in chosen]
    )


def _list_folder(path: Path) -> Images:
    """List a folder's images at any depth, sorted by path; folders directly in it are classes.

    Names that begin with a dot are skipped. A class may be a link to a folder.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder of images")
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
            "images; give a folder of class folders, or one of images only"
        )
    if not any(in_classes):
        return Images(names, None, (), files)
    classes = tuple(sorted({Path(name).parts[0] for name in names}))
    return Images(names, [classes.index(Path(name).parts[0]) for name in names], classes, files)
