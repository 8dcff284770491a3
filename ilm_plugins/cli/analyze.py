"""The command line ``tools/analyze.py``: show what a trained model's adaptive norms compute."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..analysis.collect import collect_ratios, collect_rescaling
from ..checkpoints import CheckpointError, find_absent, find_state, loading, read, unwrap_state
from ..data.images import Images, open_images
from ..errors import UserError
from ..frameworks import open_config
from ..frameworks.command import (
    add_traceback,
    as_user_error,
    command,
    config_file,
    example,
    positive,
    progress,
)
from ..frameworks.inference import Forward, Inference
from ..frameworks.output_folder import check_output
from ..layers import NORMS
from . import environment, named_models


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: parse ``argv`` (``sys.argv[1:]`` if None) and analyze a model.

    Returns:
        The exit status: 0; 2 after any error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    args = parser().parse_args(argv)
    return command(lambda: run(args), args, resumes=False)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand ``args.run``, which writes tables and pictures; print its summary.

    In a git checkout of the project its commit is added to ``summary.txt``.

    Raises:
        UserError: see :func:`run_images`, :func:`run_dynamics` and :func:`run_compare`.
    """
    with loading(unsafe=getattr(args, "unsafe", False)):
        print(args.run(args))
    commit = environment.commit()
    if commit is not None:
        with (Path(args.output).expanduser() / "summary.txt").open("a", encoding="utf-8") as file:
            file.write(f"at commit {commit}\n")
    print(f"written to {args.output}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the subcommands ``ratios``, ``omega``, ``dynamics`` and ``compare``.

    Each sets ``run`` to its function, such as :func:`run_images`. Those with run_images also set
    ``collect``, a function, and ``write``, the name of a function of
    :mod:`ilm_plugins.analysis.tables`.
    """
    p = argparse.ArgumentParser(
        description="See what adaptive layers have learned: tables (CSV), pictures (PNG), summary.",
        epilog=example(
            "analyze ratios IMAGES --model timm:resnet18 --norm EN \\\n"
            "    --checkpoint resnet18_en.pth --output output/ratios"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(required=True, metavar="COMMAND")
    ratios = commands.add_parser(
        "ratios",
        help="EN's, SN's and SSN's ratios by layer, class and image",
        description="The ratios of EN, SN and SSN layers: means by layer, class and image, the "
        "spread between images, and a map of the images.",
    )
    omega = commands.add_parser(
        "omega",
        help="ILM's and AssocNorm's omega and beta by layer, class and image",
        description="How far omega and beta of ILM layers and AssocNorm are from B_omega and "
        "B_beta, by layer, key group, class and image, and a map of the images.",
    )
    dynamics = commands.add_parser(
        "dynamics",
        help="EN's, SN's and SSN's ratios over the checkpoints of a training",
        description="The ratios of EN, SN and SSN layers by checkpoint: means by layer, of classes "
        "and of single images, and maps of the images, as in Figs. 1a and 5 to 8 of the EN paper. "
        "Checkpoints are in the order of the last number in their names.",
    )
    compare = commands.add_parser(
        "compare",
        help="EN's, SN's and SSN's ratios by layer on several data sets, or of several models",
        description="The mean ratios by layer of several reports in one picture, as in Fig. 4 of "
        "the EN paper.",
    )
    for subparser in (ratios, omega, dynamics):
        _add_options(subparser)
    for subparser in (ratios, omega):
        subparser.add_argument("--checkpoint", required=True, metavar="FILE")
    for subparser in (ratios, omega, dynamics):
        subparser.add_argument(
            "--embedding",
            choices=("pca", "tsne"),
            default="pca",
            help="how images are mapped; tsne is slow",
        )
    ratios.set_defaults(run=run_images, collect=collect_ratios, write="write_ratios")
    omega.set_defaults(run=run_images, collect=collect_rescaling, write="write_rescaling")
    dynamics.add_argument("--checkpoint", required=True, nargs="+", metavar="FILE")
    dynamics.set_defaults(run=run_dynamics)
    add_traceback(compare)
    compare.add_argument(
        "reports", nargs="+", metavar="REPORT", help="output folders of the subcommand ratios"
    )
    _add_output(compare)
    compare.set_defaults(run=run_compare)
    return p


def _add_options(p: argparse.ArgumentParser) -> None:
    """Add the options of subcommands that run a model: the images, the model, the output folder."""
    add_traceback(p)
    p.add_argument(
        "images", help="a folder of class folders, a flat folder, or a packed .npz of images"
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config-file",
        type=config_file,
        metavar="FILE",
        help="the model: a config as of the command train",
    )
    what.add_argument("--model", metavar="LIBRARY:NAME", help="or torchvision:NAME, timm:NAME")
    p.add_argument(
        "--norm",
        metavar="NORM",
        help=f"with --model: {', '.join(NORMS)}; options as in 'EN(reduction=16)'",
    )
    p.add_argument("--num-classes", type=positive, metavar="N", help="with --model")
    p.add_argument("--size", type=positive, metavar="N", help="with --model: side of its images")
    _add_output(p)
    p.add_argument(
        "--match",
        action="append",
        metavar="PATTERN",
        help="names of layers, * for any characters; can be given again",
    )
    p.add_argument(
        "--classes", nargs="+", default=(), metavar="NAME", help="take images of these classes only"
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


def _add_output(p: argparse.ArgumentParser) -> None:
    """Add the option ``--output``."""
    p.add_argument("--output", required=True, metavar="DIR", help="new or empty")


def run_images(args: argparse.Namespace) -> str:
    """Run one checkpoint on the images, and write tables and pictures to ``--output``.

    ``ratios`` measures the ratios of EN, SN and SSN, ``omega`` the omega and beta of ILM layers and
    AssocNorm.

    ``args.collect`` is the function that measures, ``args.write`` the name of the function in
    :mod:`ilm_plugins.analysis.tables` that writes the files.

    Returns:
        The summary, several lines of text.

    Raises:
        UserError: see :func:`prepare`, :func:`load_weights` and :func:`seed_forward`; or the model
            has no such layers, or ``--match`` selects none of them.
    """
    from ..analysis import tables

    inference, images, batches, folder = prepare(args)
    load_weights(inference.model, args.checkpoint)
    found = args.collect(inference.model, batches(), seed_forward(inference.forward), args.match)
    title = f"{inference.name}, {Path(args.checkpoint).name}, {_describe_images(images, args)}"
    return getattr(tables, args.write)(folder, found, images, title, args.embedding)


def run_dynamics(args: argparse.Namespace) -> str:
    """Run several checkpoints on the images, and write EN's, SN's and SSN's ratios to ``--output``.

    Returns:
        The summary, several lines of text.

    Raises:
        UserError: a checkpoint does not exist; see also :func:`sort_by_step`, :func:`prepare`,
            :func:`load_weights` and :func:`seed_forward`; or the model has no EN, SN or SSN layers,
            or ``--match`` selects none.
    """
    from ..analysis.dynamics import write_dynamics

    steps = sort_by_step(args.checkpoint)
    for path in steps.values():
        if not Path(path).expanduser().is_file():
            raise UserError(f"checkpoint {path!r} does not exist; give a file")
    inference, images, batches, folder = prepare(args)
    found = []
    for path in steps.values():
        load_weights(inference.model, path)
        forward = seed_forward(inference.forward)
        try:
            found.append(collect_ratios(inference.model, batches(), forward, args.match))
        except UserError as error:
            raise UserError(f"checkpoint {path!r}: {error}") from error
    label = "epoch" if "epoch" in Path(args.checkpoint[0]).name else "iteration"
    title = f"{inference.name}, {_describe_images(images, args)}"
    return write_dynamics(folder, list(steps), found, images, title, label, args.embedding)


def run_compare(args: argparse.Namespace) -> str:
    """Draw the ratios by layer of several reports in one picture, in the folder ``--output``.

    Returns:
        The summary, several lines of text.

    Raises:
        UserError: a report is missing or damaged, or :func:`new_folder` raises it.
    """
    from ..analysis.tables import write_comparison

    folder = new_folder(args.output)
    check_output(str(folder), "--output")
    return write_comparison(folder, [Path(report).expanduser() for report in args.reports])


def sort_by_step(paths: Sequence[str]) -> dict[int, str]:
    """Sort checkpoints by the last number in their file names, without folder and suffix.

    Returns:
        A dict from epoch or iteration, in rising order, to the path of its checkpoint.

    Raises:
        UserError: a file name has no number, or two names have the same number.
    """
    steps: dict[int, str] = {}
    for path in paths:
        numbers = re.findall(r"\d+", Path(path).stem)
        if not numbers:
            raise UserError(f"checkpoint {path!r} has no number in its name; leave it out")
        step = int(numbers[-1])
        if step in steps:
            raise UserError(f"{steps[step]!r} and {path!r} have one step, {step}; leave one out")
        steps[step] = path
    return dict(sorted(steps.items()))


def prepare(
    args: argparse.Namespace,
) -> tuple[Inference, Images, Callable[[], Iterator[list[np.ndarray]]], Path]:
    """Build the model, open the images, and check the output folder.

    Creates the output folder if it is missing, and prints the number of images and their
    preprocessing.

    Args:
        args: the parsed command line; see :func:`parser`.

    Returns:
        The model with random weights; the images; a function that iterates over them in batches,
        lists of (H, W, 3) uint8 arrays; and the path of the output folder.

    Raises:
        UserError: the output folder is not empty or cannot be written, there are no images or
            their archive is invalid, matplotlib or scikit-learn is not installed, or the model
            cannot be built (:func:`load_model`).
    """
    # Pictures are drawn at the end; a missing package should stop the command at once.
    from ..analysis import tables  # noqa: F401

    folder = new_folder(args.output)
    images = open_images(args.images, args.limit, args.classes)
    inference = load_model(args)
    check_output(str(folder), "--output")
    print(f"{_count_images(images)} of {args.images}, each: {inference.preprocessing}")

    def batches() -> Iterator[list[np.ndarray]]:
        """Read the images again, in order, and show progress."""
        size = args.batch_size or inference.batch_size
        return progress(images.batches(size), len(images))

    return inference, images, batches, folder


def new_folder(output: str) -> Path:
    """Return the path of ``--output``, without creating it.

    Raises:
        UserError: the folder is not empty.
    """
    folder = Path(output).expanduser()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {output} is not empty; give a new folder")
    return folder


def load_model(args: argparse.Namespace) -> Inference:
    """Build the model of ``--config-file`` or ``--model``, with random weights, on ``--device``.

    Args:
        args: the parsed command line. ``norm``, ``num_classes`` and ``size`` are allowed with
            ``model`` only, ``opts`` with ``config_file`` only.

    Raises:
        UserError: the device cannot be used, options contradict each other, the config cannot be
            read, its framework or the model's library is not installed, or the model does not exist
            or cannot be built.
    """
    with as_user_error(f"--device {args.device} cannot be used", "give cpu, or cuda:N"):
        torch.empty(0, device=args.device)
    of_model = {"--norm": args.norm, "--num-classes": args.num_classes, "--size": args.size}
    if args.model is not None:
        if args.opts:
            raise UserError("--opts with --model: overrides are of a config; leave them out")
        return named_models.load(args.model, args.norm, args.num_classes, args.size, args.device)
    given = [option for option, value in of_model.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is only for --model; with --config-file leave it out")
    return open_config(args.config_file, args.opts, args.device).inference()


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a checkpoint into a model, in place; ignore tensors that the model does not have.

    The prefixes "module." and "_orig_mod." of a wrapped model's names are removed.

    Raises:
        UserError: the checkpoint holds no state dict.
        CheckpointError: the checkpoint is missing or unreadable, or a tensor of the model is not in
            it or has another shape there.
    """
    _, state = find_state(read(path), path)
    state = unwrap_state(state, model)
    lacking = find_absent(state, model)
    if lacking:
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit: {len(lacking)} of the model's "
            f"{len(model.state_dict())} tensors, such as {lacking[0]}, are missing there or of "
            "another shape; give one of this model"
        )
    model.load_state_dict(state, strict=False)


def seed_forward(forward: Forward) -> Forward:
    """Seed torch, since some models apply dropout in evaluation, and return the function to run.

    torch's global random state is set once, in this call, to seed 0.

    Returns:
        ``forward`` with its exceptions turned into UserErrors that have the images' sizes;
        UserErrors and CUDA's out-of-memory errors pass unchanged.
    """

    def run_on(images: Sequence[np.ndarray]) -> Any:
        """Run the model on (H, W, 3) RGB uint8 images, and return what it returns."""
        sizes = ", ".join(sorted({"{1} x {0}".format(*image.shape) for image in images}))
        with as_user_error(
            f"the model cannot be run on {len(images)} images of {sizes}",
            "give images that it takes, of one size, or --batch-size 1",
        ):
            return forward(images)

    torch.manual_seed(0)
    return run_on


def _count_images(images: Images) -> str:
    """Return the number of images with its noun, such as "1,000 images"."""
    return f"{len(images):,} {'image' if len(images) == 1 else 'images'}"


def _describe_images(images: Images, args: argparse.Namespace) -> str:
    """Return the number of images, the name of their folder and ``--classes``, for titles."""
    classes = f" ({', '.join(args.classes)})" if args.classes else ""
    return f"{_count_images(images)} of {Path(args.images).resolve().name}{classes}"
