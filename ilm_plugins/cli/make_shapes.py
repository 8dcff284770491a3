"""The command line ``tools/make_shapes.py``: write the generated data set `shapes`."""

import argparse
import os
from collections.abc import Sequence

from ..data.shapes import write_shapes
from ..errors import UserError
from ..frameworks.command import add_traceback, command, example, progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: parse ``argv`` (``sys.argv[1:]`` if None) and write the data set.

    Returns:
        The exit status: 0; 2 after any error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    parser = argparse.ArgumentParser(
        description="Write a data set of drawn shapes to ROOT/shapes: photos, COCO instances,\n"
        "semantic masks, and pairs for pix2pix.",
        epilog=example("make-shapes --root datasets --num-training 200"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="folder that receives the folder shapes; default: $DETECTRON2_DATASETS or %(default)s",
    )
    for name, default, what in (
        ("--num-training", 1000, "training images"),
        ("--num-validation", 200, "validation images"),
        ("--size", 128, "side of the images in pixels"),
        ("--seed", 0, "seed of the data set"),
    ):
        what = f"{what}; default: {default}"
        parser.add_argument(name, type=int, default=default, metavar="N", help=what)
    add_traceback(parser)
    options = parser.parse_args(argv)
    return command(lambda: write(options), options, resumes=False)


def write(options: argparse.Namespace) -> None:
    """Write the data set of a parsed command line, or find it, and print its folder.

    Raises:
        UserError: see the errors of :func:`.write_shapes`.
    """
    try:
        folder = write_shapes(
            os.path.expanduser(options.root),
            num_training=options.num_training,
            num_validation=options.num_validation,
            size=options.size,
            seed=options.seed,
            progress=lambda images: progress(images, len(images), lambda _: 1),
        )
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(
        f"{folder}: {options.num_training} training and {options.num_validation} validation images"
    )
