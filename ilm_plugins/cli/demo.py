"""Train small models on the generated `shapes`, print their COCO AP and draw predictions."""

import argparse
import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import missing
from ..frameworks.command import add_traceback, command, config_file, example, user_path
from . import environment, train_net


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``tools/demo.py``: parse ``argv`` (``sys.argv[1:]`` if None).

    Returns:
        The exit status: 0; that of the first training that failed, see :func:`.train_net.main`; 2
        after any other error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=example("demo ilm_plugins://shapes/mask_rcnn_R_18_FPN_ilmgn.yaml"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "configs", nargs="+", type=config_file, metavar="CONFIG", help="detectron2 yaml"
    )
    parser.add_argument("--output", type=user_path, default="output/demo", metavar="FOLDER")
    parser.add_argument(
        "--record",
        type=user_path,
        metavar="FOLDER",
        help="also write the results and the last picture there",
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    add_traceback(parser)
    args = parser.parse_args(argv)
    return command(lambda: run(args), args, resumes=False)


def run(args: argparse.Namespace) -> int:
    """Train and evaluate each config, draw predictions, and print a table of AP and time.

    Training runs on the CPU. The run folder of a config is OUTPUT/NAME, where NAME is its file name
    without suffix; ``predictions.png`` is written there, too. With ``args.record`` the table and
    the last picture are also written to that folder; see :func:`write_record`.

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
        raise missing("the demo", error) from error

    results = []
    for config in args.configs:
        folder = args.output / Path(config).stem
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
        norm, (box, mask) = cfg.MODEL.ROI_BOX_HEAD.NORM, _last_ap(folder)
        result = {"config": Path(config).name, "norm": norm, "box AP": box, "mask AP": mask}
        results.append({**result, "seconds": round(seconds)})
    print(f"\n{'box head norm':14} {'box AP':>7} {'mask AP':>8} {'seconds':>8}   picture")
    for one, config in zip(results, args.configs, strict=True):
        norm, box, mask, seconds = (one[key] for key in ("norm", "box AP", "mask AP", "seconds"))
        picture = args.output / Path(config).stem / "predictions.png"
        print(f"{norm:14} {box:7.1f} {mask:8.1f} {seconds:8}   {picture}")
    if args.record is not None:
        write_record(results, picture, args.record)
    return 0


def _last_ap(folder: Path) -> tuple[float, float]:
    """Return box AP and mask AP, in percent, of the last evaluation in a run folder.

    Mask AP is NaN for a detector without masks.
    """
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    metrics = [line for line in lines if "bbox/AP" in line][-1]
    return round(metrics["bbox/AP"], 2), round(metrics.get("segm/AP", math.nan), 2)


def write_record(results: list[dict[str, Any]], picture: Path, folder: Path) -> None:
    """Write ``demo.json`` and ``demo.png`` to a folder, as ``docs/`` has them.

    Args:
        results: config, norm, AP in percent and seconds of each training; goes to demo.json with
            torch's version, the processor, its threads, the commit and the SHA-256 of the picture.
        picture: the PNG to copy.
        folder: an existing folder, in which older files of these names are replaced.
    """
    # The commit is read first: in a checkout's docs/ the new picture would count as a change.
    record = {
        "results": results,
        "picture": hashlib.sha256(picture.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "processor": environment.processor(),
        "threads": torch.get_num_threads(),
        "commit": environment.commit(),
    }
    shutil.copyfile(picture, folder / "demo.png")
    (folder / "demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
