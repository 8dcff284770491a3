"""The command ``make-shapes``: write the generated dataset `shapes`."""

from collections.abc import Sequence

from tqdm import tqdm

from ..data.shapes import write_shapes
from . import parsers
from .command import command


def main(argv: Sequence[str] | None = None) -> int:
    return command(lambda: write(**vars(parsers.make_shapes(argv))))


def write(**options) -> None:
    folder = write_shapes(**options, progress=tqdm)
    counts = "{num_training} training and {num_validation} validation images".format(**options)
    print(f"{folder}: {counts}")
