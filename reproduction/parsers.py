"""The options of all commands. This module does not import torch, so that --help is quick."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from .papers.options import Options


def parse(argv: Sequence[str]) -> Namespace:
    """Parse a command line; the command becomes ``action``."""
    p = ArgumentParser(
        prog="python -m reproduction",
        description="The papers' tables and figures, and what trained layers have learned.",
    )
    commands = p.add_subparsers(required=True, metavar="list | run | analyze", dest="action")
    listing = commands.add_parser("list", help="the tables, or one table's rows")
    listing.add_argument("table", nargs="?", help="such as en-5")
    add_run(commands)
    add_analyze(commands)
    return p.parse_args(argv, Namespace(argv=[*argv]))


def add_run(commands: "argparse._SubParsersAction[ArgumentParser]") -> None:
    p = commands.add_parser(
        "run",
        help="train and test a table's rows, or continue them",
        usage="%(prog)s TABLE [ROW] [options] [--opts KEY=VALUE ...]",
        epilog="Rows of one config are a comparison in WORK_DIR/CONFIG, as by compare.",
    )
    add = p.add_argument
    add("table", help="such as en-5; 'list' has them all")
    add("row", nargs="?", help="such as ResNet20/EN; default: all")
    add("--seeds", type=int, nargs="+", default=Options.seeds, metavar="SEED")
    shorter = p.add_mutually_exclusive_group()
    what = "train for N, with the schedule scaled to it; the result's label says so"
    for unit in ("epochs", "iterations"):
        shorter.add_argument(f"--{unit}", type=positive, metavar="N", help=what)
    add("--num-gpus", type=int, metavar="N", help="GPUs of each run; 0 for the CPU")
    add("--data", type=user_path, metavar="DIR", help="the images; default: the config's folder")
    add("--unsafe", action="store_true", help="run code that checkpoints and yaml configs hold")
    add("--work-dir", type=user_path, default=Options.work_dir, metavar="DIR")
    many = {"dest": "overrides", "action": "extend", "nargs": "+", "default": []}
    add("--opts", metavar="KEY=VALUE", help="overrides of the config", **many)


def add_analyze(commands: "argparse._SubParsersAction[ArgumentParser]") -> None:
    p = commands.add_parser("analyze", help="tables (CSV) of what adaptive layers have learned")
    add = p.add_argument
    what = "ratios of EN, SN and SSN, or how far omega and beta of ILM and AssocNorm are from "
    what += "B_omega and B_beta; by layer, class and image"
    add("measure", choices=("ratios", "omega"), help=what)
    add("images", help="a folder of class folders, or a flat folder")
    add("--config-file", required=True, metavar="FILE")
    what = "run your own code before the config is read; can be given again"
    add("--import", dest="imports", metavar="FILE|MODULE", action="append", default=[], help=what)
    what = "register a json of COCO instances in detectron2; can be given again"
    three = {"nargs": 3, "metavar": ("NAME", "JSON", "IMAGES")}
    add("--dataset", dest="datasets", action="append", default=[], help=what, **three)
    add("--checkpoint", required=True, metavar="FILE")
    add("--output", required=True, type=user_path, metavar="DIR", help="new or empty")
    what = "names of layers, * for any characters; can be given again"
    add("--match", action="append", metavar="PATTERN", help=what)
    add("--classes", nargs="+", default=(), metavar="NAME", help="only images of these classes")
    add("--limit", type=positive, metavar="N", help="only N images, evenly spread over all")
    what = "default: of the config's test_dataloader; in detectron2 1"
    add("--batch-size", type=positive, metavar="N", help=what)
    add("--device", help="default: cuda if there is a GPU, else cpu")
    add("--unsafe", action="store_true", help="run code that a checkpoint or a yaml config holds")
    what = "last: overrides of the config"
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=what)


def user_path(text: str) -> Path:
    """A path from the command line; shells leave the "~" of ``--output=~/runs`` as it is."""
    return Path(text).expanduser()


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer; give 1 or more")
    return int(text)
