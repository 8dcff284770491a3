"""The command line ``tools/train_net.py``: train or evaluate any framework's config."""

import argparse
import importlib
import logging
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import checkpoints
from ..errors import UserError, missing
from ..frameworks import installed
from ..frameworks.command import (
    add_traceback,
    command,
    config_file,
    example,
    positive,
    reading_config,
)
from ..frameworks.launch import launch
from ..frameworks.output_folder import RANKS, lock_run_folder
from ..frameworks.stopping import SIGNALS

#: Code by which a config in Python is one of detectron2.
DETECTRON2 = re.compile(
    r"^\s*(from\s+detectron2[\w.]*\s+import|import\s+detectron2)\b", re.MULTILINE
)
#: Code that only configs of MMEngine have, such as ``model = dict(type="ResNet")``.
MMENGINE = re.compile(
    r"^\s*(from|import)\s+mm|\b(_base_|custom_imports|default_scope|read_base)\b"
    r"|\bdict\([^()]*\btype=|[\"']type[\"']\s*:",
    re.MULTILINE,
)
#: Framework of a config, a subpackage of ilm_plugins.frameworks -> the package that it needs.
PACKAGES = {"detectron2": "detectron2", "openmmlab": "mmengine"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: parse ``argv`` (``sys.argv[1:]`` if None), train or evaluate.

    Sets ``logging.raiseExceptions`` to False in this process.

    Returns:
        The exit status: 0 for success. After an error, printed as one line: 2 for a mistake of the
        user, 1 for an error that ended a run that had begun, 130 for Ctrl-C, 143 for SIGTERM.
        SIGTERM is not handled with another ``--launcher`` than none: it ends the process.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    args = parser().parse_args(argv)
    # Report a full disk once, not at each line of the log.
    logging.raiseExceptions = False
    # After one process fails, a launcher sends SIGTERM to the others; only the first error matters.
    signals = SIGNALS if args.launcher == "none" else (signal.SIGINT,)
    return command(lambda: start(args), args, signals=signals)


def start(args: argparse.Namespace) -> None:
    """Check the command line, the config and its data; then train or evaluate.

    Creates the output folder and, for a training, locks it until the end; see
    :func:`.lock_run_folder`. For other side effects see :func:`check_processes`.

    Args:
        args: the parsed command line of :func:`parser`.

    Raises:
        UserError: the command line, the config, its data or its checkpoint is invalid, another
            training holds the lock, or one of several processes failed. With a single process,
            exceptions of the training or evaluation pass unchanged.
    """
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        raise UserError(f"{late[0]} comes after an override; give options before overrides")
    framework = framework_of(args.config_file)
    check_processes(args)
    check_framework(framework, args)
    package = f"ilm_plugins.frameworks.{framework}"
    with checkpoints.loading(unsafe=args.unsafe):
        cfg, folder, setting = importlib.import_module(f"{package}.checks").check(args)
        with lock_run_folder(folder, setting, args):
            launch(f"{package}.train", args, cfg)


def parser() -> argparse.ArgumentParser:
    """Return the parser: options of detectron2, MMEngine's --launcher and --tta, and our own.

    The first positional word and all words after it are overrides of the config, in ``opts``.
    ``num_gpus`` is None by default; :func:`check_processes` sets it.
    """
    p = argparse.ArgumentParser(
        description="Train or evaluate a detectron2 .yaml or LazyConfig .py, or an MMEngine .py.\n"
        "Several machines: the same command on each, with --num-machines, --machine-rank\n"
        "and one --dist-url, such as tcp://10.0.0.1:29500.",
        epilog=example(
            "train --config-file ilm_plugins://shapes/mask_rcnn_R_18_FPN_ilmgn.yaml \\\n"
            "    --num-gpus 0 OUTPUT_DIR output/shapes"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--config-file",
        required=True,
        type=config_file,
        metavar="FILE",
        help="a path, or ilm_plugins://NAME for one of this package's configs",
    )
    p.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs a machine, 0 for CPU; default: 1 if any"
    )
    p.add_argument(
        "--num-processes",
        type=positive,
        default=1,
        metavar="N",
        help="processes a machine over gloo, with --num-gpus 0",
    )
    p.add_argument("--num-machines", type=int, default=1, metavar="M")
    p.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 to M - 1")
    p.add_argument("--dist-url", default="auto", metavar="URL", help="default: a free local port")
    p.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    p.add_argument("--eval-only", action="store_true", help="evaluate the checkpoint and stop")
    p.add_argument(
        "--tta", action="store_true", help="MMEngine: evaluate with the config's tta_pipeline"
    )
    p.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="MMEngine: who started this process; pytorch is torchrun",
    )
    p.add_argument(
        "--amp",
        action="store_true",
        help="train in mixed precision: bfloat16 on the CPU, float16 on GPUs; evaluate in float32",
    )
    p.add_argument(
        "--channels-last",
        action="store_true",
        help="store weights and feature maps with channels last, for many models faster on the CPU",
    )
    p.add_argument(
        "--ratios-interval",
        type=positive,
        metavar="N",
        help="log EN's, SN's and SSN's mean ratios every N iterations, as ratios/LAYER/NORMALIZER",
    )
    p.add_argument(
        "--unsafe",
        "--unsafe-checkpoints",
        action="store_true",
        help="run code that checkpoints, yaml configs and proposals hold",
    )
    add_traceback(p)
    p.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides: 'KEY VALUE' pairs for .yaml, 'KEY=VALUE' for .py",
    )
    return p


def framework_of(path: str) -> str:
    """Return the framework of a config file, from its suffix and its content.

    A .yaml or .yml is detectron2's. A .py without an import of detectron2 is MMEngine's if it
    imports a package named ``mm...`` or has syntax that only MMEngine's configs have; any other is
    detectron2's.

    Returns:
        "detectron2" or "openmmlab", which is MMEngine's.

    Raises:
        UserError: the file does not exist, cannot be read, or is neither .yaml nor .py.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist; give the path of a .yaml or .py")
    if path.endswith((".yaml", ".yml")):
        return "detectron2"
    if not path.endswith(".py"):
        raise UserError(f"config file {path!r} is neither .yaml nor .py; give one of these")
    with reading_config(path):
        code = Path(path).read_text(encoding="utf-8", errors="replace")
    if DETECTRON2.search(code) or not MMENGINE.search(code):
        return "detectron2"
    return "openmmlab"


def check_framework(framework: str, args: argparse.Namespace) -> None:
    """Raise UserError unless a framework is installed, and supports the given options.

    detectron2 supports neither ``--tta`` nor another ``--launcher`` than none.

    Args:
        framework: a key of PACKAGES.
        args: the parsed command line.
    """
    if not installed(PACKAGES[framework]):
        raise missing(args.config_file, PACKAGES[framework])
    if framework == "detectron2" and (args.tta or args.launcher != "none"):
        option = "--tta" if args.tta else f"--launcher {args.launcher}"
        raise UserError(
            f"{option} is for MMEngine configs, and {args.config_file} is one of detectron2; "
            "leave it out"
        )


def check_processes(args: argparse.Namespace) -> None:
    """Check the numbers of GPUs, processes and machines, and the address of the first machine.

    If ``args.num_gpus`` is None, sets it to 1, or to 0 without a GPU. If it is 0, hides all GPUs
    from this process and those that it starts later, by CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: there are fewer GPUs than asked for; several processes are asked for beside GPUs;
            the machine's rank is out of range; ``--dist-url`` is not tcp://HOST:PORT for several
            machines; or an option does not suit the launcher (:func:`check_launcher`).
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.num_gpus is None:
        args.num_gpus = min(1, available)
    if not 0 <= args.num_gpus <= available:
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {available}; give 0 to {available}, "
            "where 0 is the CPU and --num-processes N starts several processes on it"
        )
    if args.num_processes > 1 and args.num_gpus > 0:
        raise UserError(
            f"--num-processes {args.num_processes} with --num-gpus {args.num_gpus}: "
            "give more than 1 with --num-gpus 0 only"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: "
            "give each machine its own rank, from 0 to the number of machines less 1"
        )
    if args.launcher != "none":
        check_launcher(args)
    elif args.num_machines > 1 and not re.fullmatch(r"tcp://.+:\d+", args.dist_url):
        raise UserError(
            f"--num-machines {args.num_machines} needs --dist-url on every machine: give "
            f"tcp://HOST:PORT with the first machine's host, not {args.dist_url}"
        )
    if args.num_gpus == 0:
        # Frameworks pick NCCL wherever they see a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def check_launcher(args: argparse.Namespace) -> None:
    """Check the options of a run that torchrun or another launcher has started.

    Args:
        args: the command line, whose ``launcher`` is "pytorch" or "slurm".

    Raises:
        UserError: the launcher has not set this process's rank, RANK or SLURM_PROCID; more than one
            is given as --num-processes or --num-machines; or --num-gpus is 0 under "slurm".
    """
    if args.num_processes > 1 or args.num_machines > 1:
        raise UserError(
            f"--launcher {args.launcher} decides the number of processes; leave --num-processes "
            "and --num-machines out"
        )
    if RANKS[args.launcher] not in os.environ:
        raise UserError(
            f"--launcher {args.launcher}, but {RANKS[args.launcher]} is not set; start this with "
            "torchrun or srun, or leave --launcher out"
        )
    if args.launcher == "slurm" and args.num_gpus == 0:
        raise UserError("--launcher slurm needs GPUs; use --num-processes on the CPU")
