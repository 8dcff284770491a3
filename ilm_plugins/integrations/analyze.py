"""What the adaptive layers of a trained model do to images; see ``tools/analyze.py``."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..analysis.collect import collect_ratios, collect_rescaling
from ..analysis.embed import METHODS
from ..analysis.images import Images, open_images
from ..checkpoints import CheckpointError, check_fits, find_absent, loading, unwrap_state
from ..errors import UserError
from ..layers import NORMS
from . import convert, training, zoo
from .subject import Subject
from .training import building, positive


def main(argv: Sequence[str] | None = None) -> int:
    """Look at a model's layers.

    Returns:
        The exit status: 0, or 2 after printing one line about the user's mistake.
    """
    args = parser().parse_args(argv)
    return training.command(lambda: run(args), args, resumes=False)


def run(args: argparse.Namespace) -> None:
    """Look at a model's layers, and print the summary."""
    with loading(unsafe=args.unsafe):
        print(args.run(args))
    print(f"written to {args.output}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="See what adaptive layers have learned: tables (CSV), pictures (PNG), summary.",
    )
    commands = p.add_subparsers(required=True, metavar="COMMAND")
    ratios = commands.add_parser(
        "ratios",
        help="EN's and SN's ratios by layer, class and image",
        description="The ratios of EN and SN layers, as in Figs. 4 and 6 to 8 of the EN paper: "
        "means by layer, class and image, the spread between images, and a map of the images.",
    )
    ratios.add_argument(
        "--embedding", choices=METHODS, default="pca", help="how images are mapped; tsne is slow"
    )
    omega = commands.add_parser(
        "omega",
        help="ILM's and AssocNorm's omega and beta by layer, class and image",
        description="How far omega and beta of ILM layers and AssocNorm are from B_omega and "
        "B_beta, by layer, key group and class, and which images move them most.",
    )
    dynamics = commands.add_parser(
        "dynamics",
        help="EN's and SN's ratios over the checkpoints of a training",
        description="The mean ratios of EN and SN layers by checkpoint, as in Fig. 5 of the EN "
        "paper. Checkpoints are in the order of the last number in their names.",
    )
    for command, run in ((ratios, run_ratios), (omega, run_omega), (dynamics, run_dynamics)):
        command.set_defaults(run=run)
        _add_options(command)
    for command in (ratios, omega):
        command.add_argument("--checkpoint", required=True, metavar="FILE")
    dynamics.add_argument("--checkpoint", required=True, nargs="+", metavar="FILE")
    return p


def _add_options(p: argparse.ArgumentParser) -> None:
    training.add_traceback(p)
    p.add_argument(
        "images", help="a folder of class folders, a flat folder, or a packed .npz of images"
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config-file", metavar="FILE", help="the model: a config as of tools/train_net.py"
    )
    what.add_argument("--model", metavar="LIBRARY:NAME", help="or torchvision:NAME, timm:NAME")
    p.add_argument(
        "--norm",
        metavar="NORM",
        help=f"with --model: {', '.join(NORMS)}; options as in 'EN(reduction=16)'",
    )
    p.add_argument("--num-classes", type=positive, metavar="N", help="with --model")
    p.add_argument("--size", type=positive, metavar="N", help="with --model: side of its images")
    p.add_argument("--output", required=True, metavar="DIR", help="new or empty")
    p.add_argument(
        "--match",
        action="append",
        metavar="PATTERN",
        help="names of layers, * for any characters; can be given again",
    )
    p.add_argument(
        "--limit", type=positive, metavar="N", help="take N images, evenly spread over all"
    )
    p.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="default: of the config's test_dataloader; in detectron2 1; with --model 32",
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument(
        "--unsafe",
        "--unsafe-checkpoints",
        action="store_true",
        help="run code that a checkpoint or a yaml config holds",
    )
    p.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="with --config-file, last: overrides of it",
    )


def run_ratios(args: argparse.Namespace) -> str:
    from ..analysis.ratios import write_ratios

    subject, images, batch_size, folder = prepare(args)
    load_weights(subject.model, args.checkpoint)
    found = collect_ratios(subject.model, images.batches(batch_size), _telling(subject), args.match)
    return write_ratios(folder, found, images, _title(args, subject, images), args.embedding)


def run_omega(args: argparse.Namespace) -> str:
    from ..analysis.rescaling import write_rescaling

    subject, images, batch_size, folder = prepare(args)
    load_weights(subject.model, args.checkpoint)
    found = collect_rescaling(
        subject.model, images.batches(batch_size), _telling(subject), args.match
    )
    return write_rescaling(folder, found, images, _title(args, subject, images))


def run_dynamics(args: argparse.Namespace) -> str:
    from ..analysis.ratios import write_dynamics

    steps = sort_by_step(args.checkpoint)
    subject, images, batch_size, folder = prepare(args)
    found = []
    for path in steps.values():
        load_weights(subject.model, path)
        batches = images.batches(batch_size)
        found.append(collect_ratios(subject.model, batches, _telling(subject), args.match))
    label = "epoch" if "epoch" in Path(args.checkpoint[0]).name else "iteration"
    title = f"{subject.name}, {_count(images)} of {Path(args.images).name}"
    return write_dynamics(folder, list(steps), found, title, label)


def sort_by_step(paths: Sequence[str]) -> dict[int, str]:
    """Epoch or iteration -> checkpoint, rising.

    Raises:
        UserError: a name has no number in it, or two have the same.
    """
    steps: dict[int, str] = {}
    for path in paths:
        numbers = re.findall(r"\d+", Path(path).stem)
        if not numbers:
            raise UserError(f"checkpoint {path!r} has no number in its name; leave it out")
        step = int(numbers[-1])
        if step in steps:
            raise UserError(f"{steps[step]!r} and {path!r} are of one step, {step}; leave one out")
        steps[step] = path
    return dict(sorted(steps.items()))


def prepare(args: argparse.Namespace) -> tuple[Subject, Images, int, Path]:
    """The model, untrained; the images; how many at once; and the folder to write to.

    Raises:
        UserError: one of them is not what it should be.
    """
    # Pictures are drawn at the end; what they need shall not be missed only then.
    from ..analysis import plots  # noqa: F401

    folder = Path(args.output).expanduser()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {args.output} is not empty; give a new folder")
    images = open_images(args.images, args.limit)
    subject = load_subject(args)
    training.check_output(args.output, "--output")
    print(f"{_count(images)} of {args.images}, each: {subject.preprocessing}")
    return subject, images, args.batch_size or subject.batch_size, folder


def load_subject(args: argparse.Namespace) -> Subject:
    """The model that ``--config-file`` or ``--model`` names, untrained.

    Raises:
        UserError: there is none, options contradict each other, or there is no such device.
    """
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: {' '.join(str(error).split())[:200]}") from error
    of_model = {"--norm": args.norm, "--num-classes": args.num_classes, "--size": args.size}
    if args.model is not None:
        if args.opts:
            raise UserError("--opts with --model: overrides are of a config; leave them out")
        return zoo.load(args.model, args.norm, args.num_classes, args.size, args.device)
    given = [option for option, value in of_model.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} with --config-file: the config says it; leave it out")
    framework, of_config = convert.config_args(args.config_file, args.opts)
    of_config.device = args.device
    if framework == "mmengine":
        from .openmmlab import analyze
    else:
        from .detectron2 import analyze
    with building(f"the model of {args.config_file}"):
        return analyze.load(of_config)


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a checkpoint that has all of a model's tensors; what else it has is left.

    Raises:
        UserError: it holds no state dict.
        CheckpointError: it cannot be read, or is of another model.
    """
    _, state = convert.find_state(convert.read_any(path), path)
    state = unwrap_state(state, model)
    lacking = find_absent(state, model)
    check_fits(path, model, state, lacking)
    if lacking:
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit: {len(lacking)} of the model's "
            f"{len(model.state_dict())} tensors, such as {lacking[0]}, are missing there or of "
            "another shape; give one of this model"
        )
    model.load_state_dict(state, strict=False)


def _telling(subject: Subject) -> Callable[[Sequence[np.ndarray]], Any]:
    """The model's forward, whose errors are told in one line."""

    def forward(images: Sequence[np.ndarray]) -> Any:
        try:
            return subject.forward(images)
        except UserError:
            raise
        except Exception as error:  # models raise what they like
            sizes = ", ".join(sorted({"{1} x {0}".format(*image.shape) for image in images}))
            raise UserError(
                f"the model cannot be run on {len(images)} images of {sizes}: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; give images that "
                "it takes, of one size, or --batch-size 1"
            ) from error

    # Dropout may be at work in evaluation, too.
    torch.manual_seed(0)
    return forward


def _count(images: Images) -> str:
    return f"{len(images):,} {'image' if len(images) == 1 else 'images'}"


def _title(args: argparse.Namespace, subject: Subject, images: Images) -> str:
    return (
        f"{subject.name}, {Path(args.checkpoint).name}, {_count(images)} of "
        f"{Path(args.images).name}"
    )
