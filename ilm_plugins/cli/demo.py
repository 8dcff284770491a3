"""Train small models on the generated `shapes`, print their COCO AP and draw predictions."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..frameworks.command import add_traceback, command
from . import train_net


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``tools/demo.py``: parse ``argv`` (``sys.argv[1:]`` if None).

    Returns:
        The exit status: 0; that of the first training that failed, see :func:`.train_net.main`; 2
        after any other error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="detectron2 yaml")
    parser.add_argument("--output", default="output/demo", metavar="FOLDER")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    add_traceback(parser)
    args = parser.parse_args(argv)
    return command(lambda: run(args), args, resumes=False)


def run(args: argparse.Namespace) -> int:
    """Train and evaluate each config, draw predictions, and print a table of AP and time.

    Training runs on the CPU. The run folder of a config is OUTPUT/NAME, where NAME is its file name
    without suffix; ``predictions.png`` is written there, too.

    Returns:
        0, or the exit status of the first training that failed; the remaining configs are then not
        trained, and no table is printed.

    Raises:
        UserError: detectron2 is not installed, or predictions cannot be drawn.
    """
    try:
        from ..frameworks.detectron2.checks import load_config
        from ..frameworks.detectron2.picture import draw_predictions
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run 'make install-detectron2'") from error

    rows = []
    for config in args.configs:
        folder = Path(args.output, Path(config).stem)
        options = ["--config-file", config, "--num-gpus", "0", *["--traceback"] * args.traceback]
        overrides = ["OUTPUT_DIR", str(folder), *args.opts]
        start = time.perf_counter()
        status = train_net.main([*options, *overrides])
        if status:
            return status
        seconds = time.perf_counter() - start
        weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
        cfg = load_config(train_net.parser().parse_args([*options, *overrides, *weights]))
        draw_predictions(cfg, folder / "predictions.png")
        rows.append(_row(cfg.MODEL.ROI_BOX_HEAD.NORM, folder, seconds))
    print(f"\n{'box head norm':14} {'box AP':>7} {'mask AP':>8} {'seconds':>8}   picture")
    print("\n".join(rows))
    return 0


def _row(norm: str, folder: Path, seconds: float) -> str:
    """Return a line of the table: norm, box AP and mask AP of the last evaluation, seconds.

    Args:
        norm: the NORM of the box head.
        folder: the run folder, whose metrics.json has the evaluations.
        seconds: duration of training and evaluation.
    """
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    metrics = [line for line in lines if "bbox/AP" in line][-1]
    box, mask = metrics["bbox/AP"], metrics["segm/AP"]
    return f"{norm:14} {box:7.1f} {mask:8.1f} {seconds:8.0f}   {folder / 'predictions.png'}"
