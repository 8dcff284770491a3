"""Data sets that the package generates, and readers of others."""

from pathlib import Path

#: Classes of the `shapes` data set, each with an RGB colour to draw it in, told apart by everybody
#: (Okabe and Ito's). Here, so that they cost no import.
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}


def ensure_shapes(folder: Path, **options: int) -> None:
    """Write `shapes` to ``folder``, whose name must be "shapes", unless the data set is there.

    Args:
        options: of :func:`.shapes.write_shapes`.

    Raises:
        ValueError: the folder is missing and has another name, or an option is out of range.
    """
    if (folder / "shapes.json").exists():
        return
    if folder.name != "shapes":
        raise ValueError(
            f"shapes is not in {str(folder)!r}, and is generated only in a folder called 'shapes'; "
            "give one"
        )
    from .shapes import write_shapes

    write_shapes(folder.parent, **options)
