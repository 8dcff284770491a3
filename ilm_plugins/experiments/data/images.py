"""Images to analyze: a folder, with or without class folders."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ...errors import UserError, one_line

#: Orientation in EXIF data -> how to turn the image upright. Pillow's own exif_transpose also
#: writes the EXIF data again, which fails for some photos.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as RGB, turned upright by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut all values off at 255
                raise ValueError(f"mode {image.mode!r}, expected 8 bits")
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
            return (image if turn is None else image.transpose(turn)).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = one_line(error)
        raise UserError(f"{path} cannot be read ({reason}); remove or replace it") from error


@dataclass(frozen=True)
class Images:
    """A sequence of images, (H, W, 3) RGB uint8, decoded when indexed."""

    names: Sequence[str]
    #: The class of each image, "" without class folders.
    classes: Sequence[str]
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(read_image(self.files[index]))

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield all images in lists of ``size``; the last list may be shorter."""
        for start in range(0, len(self), size):
            yield [self[i] for i in range(start, min(start + size, len(self)))]


def open_images(
    path: str | os.PathLike, limit: int | None = None, classes: Sequence[str] = ()
) -> Images:
    """List the images of a folder of class folders, or of a flat folder, in the order of names.

    Only ``classes`` are kept, if given; of their images ``limit``, evenly spaced.
    """
    path = Path(path).expanduser()
    files = list_images(path, deep=True)
    loose = [p for p in files if p.parent == path]
    if 0 < len(loose) < len(files):
        raise UserError(
            f"{path} holds images, such as {loose[0].name}, and folders of images; give a folder "
            "of class folders, or one of images only"
        )
    class_of = {p: "" if loose else p.relative_to(path).parts[0] for p in files}
    known = sorted({*class_of.values()} - {""})
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 4, 0) or ["none"]
            raise UserError(f"{path} has no class {name!r}; near ones are {', '.join(near)}")
    chosen = [p for p in files if not classes or class_of[p] in classes]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    names = [str(p.relative_to(path)) for p in chosen]
    return Images(names, [class_of[p] for p in chosen], chosen)


def list_images(folder: Path, deep: bool = False) -> list[Path]:
    """Return the images in a folder, sorted, without hidden ones; UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    # Each child by itself, because it may be a link to a folder.
    paths = (p for child in folder.iterdir() for p in (child, *(child.rglob("*") if deep else ())))
    files = sorted(
        p
        for p in paths
        if p.suffix.lower() in ENDINGS
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{folder}: no image there; expected {', '.join(ENDINGS)}")
    return files
