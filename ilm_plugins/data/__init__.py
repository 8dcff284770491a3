"""Data sets that the package generates, and readers of others."""

from pathlib import Path

from .classes import SHAPES

__all__ = ["SHAPES", "ensure_shapes"]


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
