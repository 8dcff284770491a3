"""The options of all commands: a function for each that has options, which parses its arguments.

This module does not import torch, so that ``--help`` and mistakes in options end a command at once.
"""

import argparse
import os
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from ..frameworks.run.options import ProcessOptions

#: An override KEY=VALUE, or the key of an override KEY VALUE.
OVERRIDE = re.compile(r"\w+(\.\w+)*=|[A-Z0-9_]+(\.[A-Z0-9_]+)+$")


def train(argv: Sequence[str]) -> Namespace:
    """The first positional argument and all after it are ``overrides``."""
    p = new_parser(
        "Train or evaluate a detectron2 .yaml or LazyConfig .py, or an MMEngine .py.\n"
        "Several machines: the same command on each, with --num-machines, --machine-rank\n"
        "and one --dist-url, such as tcp://10.0.0.1:29500.",
        "train --config-file ilm_plugins://shapes/mask_rcnn_R_18_FPN_ilmgn.yaml \\\n"
        "    --num-gpus 0 OUTPUT_DIR output/shapes",
    )
    add, alone = p.add_argument, ProcessOptions()
    what = "a path, or ilm_plugins://NAME for one of this package's configs"
    add("--config-file", required=True, metavar="FILE", help=what)
    _add_registrations(add)
    what = "GPUs a machine, 0 for the CPU; default: 1 if any"
    add("--num-gpus", type=int, metavar="N", help=what)
    what = "processes a machine over gloo, with --num-gpus 0"
    add("--num-processes", type=_positive, default=alone.num_processes, metavar="N", help=what)
    what = "machines; default: 1"
    add("--num-machines", type=_positive, default=alone.num_machines, metavar="M", help=what)
    add("--machine-rank", type=int, default=alone.machine_rank, metavar="R", help="0 to M - 1")
    add("--dist-url", default=alone.dist_url, metavar="URL", help="default: a free local port")
    for flag, what in (
        ("--resume", "continue from the last checkpoint; without one, start"),
        ("--eval-only", "evaluate the config's checkpoint, or with --resume the last one"),
        ("--tta", "MMEngine: evaluate with the config's tta_model and tta_pipeline"),
        ("--amp", "train in mixed precision, on GPUs"),
        ("--unsafe", "run code that checkpoints and yaml configs hold"),
    ):
        add(flag, action="store_true", help=what)
    what = "'KEY VALUE' pairs for .yaml, 'KEY=VALUE' for .py"
    add("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=what)
    return p.parse_args(argv)


def convert(argv: Sequence[str]) -> Namespace:
    p = new_parser(
        "Convert the norms of a checkpoint: .pth of torch, detectron2 or MMEngine,\n"
        ".pkl of detectron2's model zoo or Caffe2, or .safetensors.",
        "convert gn.pth ilmgn.pth --to ILMGN --match 'roi_heads.box_head.*'",
    )
    add = p.add_argument
    add("input", type=_user_path)
    add("output", type=_user_path, help="another file, in the format that its name ends with")
    to = p.add_mutually_exclusive_group(required=True).add_argument
    what = "convert to the norms of this model: a config, as for the command train"
    to("--config-file", metavar="FILE", help=what)
    what = "ILMGN, EN or another key of ilm_plugins.NORMS; options as in 'EN(reduction=16)'"
    to("--to", metavar="NORM", help=what)
    to("--revert", action="store_true", help="to the plain norms, where a layer still computes one")
    _add_registrations(add)
    what = "with --to and --revert: names of norms, * for any characters; can be given again"
    add("--match", action="append", metavar="PATTERN", help=what)
    what = "with --to: the plain norm to replace, such as BN by ILMGN; outputs then change"
    add("--replacing", metavar="NORM", help=what)
    what = "with --config-file: INPUT has only the weights of this part, such as backbone"
    add("--part", metavar="NAME", help=what)
    add("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    add("--names", action="store_true", help="print the names of all norms, not only a summary")
    add("--unsafe", action="store_true", help="run code that INPUT or a yaml config holds")
    add("overrides", nargs="*", metavar="KEY VALUE", help="with --config-file: overrides of it")
    return p.parse_intermixed_args(argv)


def compare(argv: Sequence[str]) -> Namespace:
    """All arguments stay in ``argv``."""
    p = new_parser(
        "Train a config or a script with several norms and seeds, and compare the norms.\n"
        "The same command continues what was stopped; more norms or seeds are added.",
        "compare ilm_plugins://shapes/mask_rcnn_R_18_FPN_gn.yaml GN ILMGN \\\n"
        "    --at MODEL.ROI_BOX_HEAD.NORM --seeds 0 1 2 3 4 --opts SOLVER.MAX_ITER 100",
        "compare bn gn --seeds 0 1 2 3 4 --metric top1:results.json --command \\\n"
        '    "python train.py --norm {norm} --seed {seed} --output {output}"',
    )
    p.usage = (
        "%(prog)s CONFIG NORM NORM ... [options] [--opts KEY VALUE ... | KEY=VALUE ...]\n"
        "       %(prog)s --command COMMAND NORM NORM ... --metric NAME:FILE[:RULE] [options]"
    )
    add = p.add_argument
    add("config", metavar="CONFIG", help="of detectron2 or MMEngine, as for the command train")
    what = "a norm such as EN, GN or 'ILMGN(hidden=3)'; as-is: the config's own norms"
    add("norms", nargs="+", metavar="NORM", help=what)
    _add_registrations(add)
    what = "config keys that get the norm; default: all keys of norms"
    add("--at", nargs="+", default=(), metavar="KEY", help=what)
    what = "default: 0 1 2 3 4"
    add("--seeds", nargs="+", type=int, default=range(5), metavar="SEED", help=what)
    what = "a checkpoint that each norm starts from"
    add("--weights", type=_user_path, metavar="FILE", help=what)
    what = "test each model on the test set of another config, too; can be given again"
    add("--test", nargs=2, action="append", default=[], metavar=("NAME", "CONFIG"), help=what)
    what = "NORM with overrides, as one argument, by this name; can be given again"
    three = {"nargs": 3, "metavar": ("NAME", "NORM", "OVERRIDES")}
    add("--arm", action="append", default=[], dest="arms", help=what, **three)
    what = "a script's command, with {norm}, {seed} and {output}, in place of CONFIG"
    add("--command", metavar="COMMAND", help=what)
    what = "to compare; default: save_best, mIoU or the first. With --command, NAME:FILE[:RULE]: "
    what += "a FILE in {output} (.json, .jsonl, .csv, text); RULE last, max or min"
    add("--metric", metavar="NAME", help=what)
    what = "as of a loss; the rule min, or save_best with the rule less, implies it"
    add("--lower-is-better", action="store_true", help=what)
    what = "percent, fraction or number; default: as its values tell"
    add("--unit", choices=("percent", "fraction", "number"), metavar="UNIT", help=what)
    what = "tell norms equivalent to the first within M points (1: .01 of a fraction)"
    add("--margin", type=float, metavar="M", help=what)
    add("--num-gpus", type=int, metavar="N", help="GPUs of each run; default: 1 if any")
    what = "runs at a time, each with GPUs or CPU cores of its own; default: 1"
    add("--jobs", type=_positive, default=1, metavar="N", help=what)
    what = "this machine, or Slurm's queue; default: local"
    add("--executor", choices=("local", "slurm"), default="local", help=what)
    what = "submitit's options for Slurm, such as partition=gpu timeout_min=600"
    add("--slurm", nargs="+", default=(), metavar="KEY=VALUE", help=what)
    what = "default: output/compare/ and the config's name"
    add("--output", type=_user_path, metavar="DIR", help=what)
    what = "only print the plan: lengths, time and commands of the runs"
    add("--dry-run", action="store_true", help=what)
    add("--unsafe", action="store_true", help="run code that checkpoints and yaml configs hold")
    what = "overrides: 'KEY VALUE' pairs for .yaml, 'KEY=VALUE' for .py"
    many = {"dest": "overrides", "action": "extend", "nargs": "+", "default": []}
    add("--opts", metavar="OPT", help=what, **many)
    # argparse would read the overrides of an arm, such as --lr, as an option of its own.
    of_arm = {i + 3 for i, argument in enumerate(argv) if argument == "--arm"}
    arguments = [f" {argument}" if i in of_arm else argument for i, argument in enumerate(argv)]
    args, unknown = p.parse_known_args(arguments, Namespace(argv=[*argv]))
    if unknown := [*filter(OVERRIDE.match, args.norms), *unknown]:
        p.error(f"unrecognized arguments: {' '.join(unknown)}; give overrides behind --opts")
    name = args.config
    if args.command is not None:
        of_configs = {name: f"--{name}" for name in ("at", "weights", "test", "unsafe")}
        of_configs |= {"datasets": "--dataset", "imports": "--import"}
        of_configs["overrides"] = "--opts"
        if wrong := [shown for name, shown in of_configs.items() if getattr(args, name)]:
            p.error(f"{wrong[0]} is for a CONFIG; write it into --command, or leave it out")
        args.norms.insert(0, args.config)
        name = next((word for word in args.command.split() if word.endswith(".py")), "script")
    args.output = args.output or Path("output/compare", Path(name).stem)
    return args


def run_script(argv: Sequence[str]) -> Namespace:
    """A run of ``compare --command``: the script's command comes after ``--``."""
    end = argv.index("--")
    p = new_parser("A run of compare --command.")
    p.add_argument("folder", type=Path)
    p.add_argument("--metric", required=True)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--num-gpus", type=int, required=True)
    return p.parse_args(argv[:end], Namespace(command=[*argv[end + 1 :]]))


def translate(argv: Sequence[str]) -> Namespace:
    p = new_parser(
        "Translate a folder of images, of any size, to OUTPUT/NAME.png.",
        "translate ilm_plugins://pix2pix/facades_in_in.py \\\n"
        "    output/facades/epoch_200.pth LABELS PHOTOS",
    )
    p.add_argument("config", help="of the training")
    p.add_argument("checkpoint", help="of the training")
    p.add_argument("input", type=_user_path, help="folder of images")
    p.add_argument("output", type=_user_path, help="folder to write to, made if missing")
    p.add_argument("--unsafe", action="store_true", help="run code that the checkpoint holds")
    p.add_argument("--device", help="default: cuda if there is a GPU, else cpu")
    return p.parse_args(argv)


def make_shapes(argv: Sequence[str]) -> Namespace:
    p = new_parser(
        "Write a dataset of drawn shapes to ROOT/shapes: photos, COCO instances,\n"
        "semantic masks, and pairs for pix2pix.",
        "make-shapes --root datasets --num-training 200",
    )
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    what = "folder that receives the folder shapes; default: $DETECTRON2_DATASETS or %(default)s"
    p.add_argument("--root", type=_user_path, default=root, help=what)
    for name, default, what in (
        ("--num-training", 1000, "training images"),
        ("--num-validation", 200, "validation images"),
        ("--size", 128, "side of the images in pixels"),
        ("--seed", 0, "seed of the dataset"),
    ):
        what = f"{what}; default: {default}"
        p.add_argument(name, type=int, default=default, metavar="N", help=what)
    return p.parse_args(argv)


def demo(argv: Sequence[str]) -> Namespace:
    p = new_parser(
        "Train small detectors on the generated `shapes`, print their AP and draw predictions.",
        "demo ilm_plugins://shapes/mask_rcnn_R_18_FPN_ilmgn.yaml",
    )
    p.add_argument("configs", nargs="+", metavar="CONFIG", help="detectron2 yaml")
    p.add_argument("--output", type=_user_path, default="output/demo", metavar="FOLDER")
    p.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return p.parse_args(argv)


def new_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, commands without "python -m ilm_plugins"."""
    return argparse.ArgumentParser(
        description=description,
        epilog="\n".join(["example:", *(f"  python -m ilm_plugins {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_registrations(add: Callable[..., object]) -> None:
    """Add the options of :class:`.Registrations` to a parser."""
    what = "run your own code before the config is read; can be given again"
    form = {"action": "append", "default": []}
    add("--import", dest="imports", metavar="FILE|MODULE", help=what, **form)
    what = "register a json of COCO instances in detectron2; can be given again"
    three = "NAME", "JSON", "IMAGES"
    add("--dataset", dest="datasets", nargs=3, metavar=three, help=what, **form)


def _user_path(text: str) -> Path:
    """A path from the command line; shells leave the "~" of ``--output=~/runs`` as it is."""
    return Path(os.path.expanduser(text))


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer; give 1 or more")
    return int(text)
