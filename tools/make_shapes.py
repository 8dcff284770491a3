#!/usr/bin/env python
"""Write the generated data set `shapes` to ROOT/shapes."""

import argparse
import os

from ilm_plugins.data.shapes import write_shapes


def main() -> None:
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
    options = parser.parse_args()
    try:
        folder = write_shapes(
            os.path.expanduser(options.root),
            num_training=options.num_training,
            num_validation=options.num_validation,
            size=options.size,
            seed=options.seed,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(
        f"{folder}: {options.num_training} training and {options.num_validation} validation images"
    )


if __name__ == "__main__":
    main()
