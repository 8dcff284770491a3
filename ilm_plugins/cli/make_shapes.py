"""The command ``make-shapes``: write the generated dataset `shapes`."""

import argparse

from ..errors import writing_to
from ..experiments.data.shapes import write_shapes
from ..files import make_folder


def run(args: argparse.Namespace) -> None:
    folder = args.root / "shapes"
    sizes = {"num_training": args.num_training, "num_validation": args.num_validation}
    make_folder(args.root)
    with writing_to(args.root):
        write_shapes(folder, **sizes, size=args.size, seed=args.seed)
    print(f"{folder}: {args.num_training} training and {args.num_validation} validation images")
