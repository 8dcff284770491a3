"""The command ``train``: train or evaluate a config of detectron2 or OpenMMLab."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from ..errors import UserError, missing
from ..frameworks import PACKAGES, framework_of, installed
from ..frameworks.options import RunOptions
from ..frameworks.processes import available_gpus, check_processes, launch
from .command import command, config_file, new_parser, positive


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(parser().parse_args(argv))
    options = RunOptions(**{**args, "overrides": tuple(args["overrides"])})
    return command(lambda: run(options))


def run(options: RunOptions) -> None:
    """Train or evaluate; UserError for wrong options, or if one of several processes fails."""
    late = [word for word in options.overrides if word.startswith("--")]
    if late:
        raise UserError(f"{late[0]} comes after an override; give options before overrides")
    check_processes(options)
    framework = framework_of(options.config_file)
    if not installed(PACKAGES[framework]):
        raise missing(options.config_file, PACKAGES[framework])
    if options.amp and options.device == "cpu":
        raise UserError("--amp is for GPUs; leave it out on the CPU")
    if options.tta and framework == "detectron2":
        raise UserError("--tta is for MMEngine's configs; leave it out")
    launch(import_module(f"ilm_plugins.frameworks.{framework}.train").main, options)


def parser() -> argparse.ArgumentParser:
    """Return the parser; the first positional word and all after it are ``overrides``."""
    p = new_parser(
        "Train or evaluate a detectron2 .yaml or LazyConfig .py, or an MMEngine .py.\n"
        "Several machines: the same command on each, with --num-machines, --machine-rank\n"
        "and one --dist-url, such as tcp://10.0.0.1:29500.",
        "train --config-file ilm_plugins://shapes/mask_rcnn_R_18_FPN_ilmgn.yaml \\\n"
        "    --num-gpus 0 OUTPUT_DIR output/shapes",
    )
    add = p.add_argument
    what = "a path, or ilm_plugins://NAME for one of this package's configs"
    add("--config-file", required=True, type=config_file, metavar="FILE", help=what)
    what, gpus = "GPUs a machine, 0 for the CPU; default: 1 if any", min(1, available_gpus())
    add("--num-gpus", type=int, default=gpus, metavar="N", help=what)
    what = "processes a machine over gloo, with --num-gpus 0"
    add("--num-processes", type=positive, default=1, metavar="N", help=what)
    add("--num-machines", type=positive, default=1, metavar="M")
    add("--machine-rank", type=int, default=0, metavar="R", help="0 to M - 1")
    add("--dist-url", default="auto", metavar="URL", help="default: a free local port")
    for flag, what in (
        ("--resume", "continue from the last checkpoint"),
        ("--eval-only", "evaluate the checkpoint and stop"),
        ("--tta", "MMEngine: evaluate with the config's tta_pipeline"),
        ("--amp", "train in mixed precision, on GPUs"),
        ("--unsafe", "run code that checkpoints and yaml configs hold"),
    ):
        add(flag, action="store_true", help=what)
    what = "'KEY VALUE' pairs for .yaml, 'KEY=VALUE' for .py"
    add("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=what)
    return p
