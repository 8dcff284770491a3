"""Data sets that the package generates, and readers of packed archives and image folders."""

from pathlib import Path

from .classes import SHAPES

__all__ = ["SHAPES", "ensure_shapes"]


def ensure_shapes(folder: Path, **options: int) -> None:
    """Write the generated data set `shapes` to a folder, unless its ``shapes.json`` is there.

    An existing data set is left as it is, even if it was made with other options.

    Args:
        folder: the folder, which must be named "shapes".
        options: arguments of :func:`.shapes.write_shapes`.

    Raises:
        ValueError: the data set is missing and the folder has another name, or an option is out of
            range.
        FileExistsError: the folder exists without ``shapes.json``.
        OSError: the folder cannot be written.
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
