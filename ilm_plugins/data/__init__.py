"""The generated dataset `shapes`, and folders of images to analyze."""

from pathlib import Path

from ..errors import UserError

#: Class -> RGB colour, 0..255, to draw it in; from the palette of Okabe and Ito, whose colours
#: people with colour blindness can tell apart, too.
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}


def ensure_shapes(folder: Path, **options: int) -> None:
    """Write `shapes` with the options of ``write_shapes``, unless the folder has a shapes.json."""
    if (folder / "shapes.json").exists():
        return
    if folder.name != "shapes":
        raise UserError(
            f"shapes is not in {str(folder)!r}, and is generated only in a folder called 'shapes'; "
            "give one"
        )
    from .shapes import write_shapes  # needs numpy and Pillow

    write_shapes(folder.parent, **options)
