"""Data sets that the package generates itself, and the reading of others."""

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
    """Write `shapes` to ``folder``, which is to bear that name, unless it is there.

    Args:
        options: of :func:`.shapes.write_shapes`.

    Raises:
        ValueError: the folder has another name, or other options.
        ImportError: what draws it is not installed.
    """
    if (folder / "shapes.json").exists():
        return
    if folder.name != "shapes":
        raise ValueError(
            f"shapes is not in {str(folder)!r}, and is generated only in a folder called 'shapes'; "
            "give one"
        )
    try:
        from .shapes import write_shapes
    except ImportError as error:
        raise ImportError(
            f"generating the shapes data set needs {error.name}, which is not installed; "
            "run pip install 'ilm_plugins[data]'"
        ) from error
    write_shapes(folder.parent, **options)
