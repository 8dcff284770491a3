#!/usr/bin/env python
"""Write the generated data set `shapes` to ROOT/shapes."""

import argparse
import os
import sys

from ilm_plugins.data.shapes import write_shapes
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.command import add_traceback, command


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="folder that receives the folder shapes",
    )
    parser.add_argument("--num-training", type=int, default=1000, help="training images")
    parser.add_argument("--num-validation", type=int, default=200, help="validation images")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    add_traceback(parser)
    options = parser.parse_args()
    return command(lambda: write(options), options, resumes=False)


def write(options: argparse.Namespace) -> None:
    try:
        folder = write_shapes(
            os.path.expanduser(options.root),
            num_training=options.num_training,
            num_validation=options.num_validation,
            size=options.size,
            seed=options.seed,
        )
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(
        f"{folder}: {options.num_training} training and {options.num_validation} validation images"
    )


if __name__ == "__main__":
    sys.exit(main())
