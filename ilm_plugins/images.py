"""Image files: list a folder, and read a file upright."""

import os
from pathlib import Path

from PIL import ExifTags, Image

from .errors import UserError, one_line

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
