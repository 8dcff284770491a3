"""The command ``analyze``: show what a trained model's adaptive norms compute."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..checkpoints import load_weights
from ..configs import resolve
from ..errors import UserError
from ..experiments.analysis.collect import collect_ratios, collect_rescaling
from ..experiments.analysis.dynamics import write_dynamics
from ..experiments.analysis.tables import Report, write_ratios, write_rescaling
from ..experiments.data.images import open_images
from ..frameworks import open_config
from ..frameworks.folders import check_new, filling
from ..frameworks.registrations import Registrations
from ..frameworks.run_environment import commit
from ..layers.autoencoder import AutoencoderNorm
from ..layers.mixture import MixtureNorm
from ..surgery.norms import target_of
from . import exit_on_sigterm


def run(args: argparse.Namespace) -> None:
    """Run each checkpoint on the images; write tables and pictures, and print their summary."""
    exit_on_sigterm()  # so that no part of the output stays
    check_new(args.output)
    Registrations.of_options(args.imports, args.datasets).register(resolve(args.config_file))
    opened = open_config(args.config_file, args.opts, args.device)
    steps = sort_by_step(args.checkpoint) if args.measure == "dynamics" else {0: args.checkpoint[0]}
    images = open_images(args.images, args.limit, args.classes)
    inference = opened.inference()
    print(f"{len(images):,} images of {args.images}, each: {inference.preprocessing}")
    collect = collect_rescaling if args.measure == "omega" else collect_ratios
    size = args.batch_size or inference.batch_size
    collected = []
    for path in steps.values():
        load_weights(inference.model, path)
        torch.manual_seed(0)  # some models apply dropout in evaluation
        with tqdm(images.batches(size), Path(path).name, -(-len(images) // size)) as batches:
            collected.append(collect(inference.model, batches, inference.forward, args.match))

    classes = f" ({', '.join(args.classes)})" if args.classes else ""
    subject = f"{len(images):,} images of {Path(args.images).resolve().name}{classes}"
    if args.measure != "dynamics":
        subject = f"{Path(args.checkpoint[0]).name}, {subject}"
    kind = AutoencoderNorm if args.measure == "omega" else MixtureNorm
    name = f"{norms_in(inference.model, kind)} in {inference.name}"
    if args.opts:
        name += " with overrides"  # whose name may be of another norm
    with filling(args.output):
        report = Report(args.output, images, f"{name}, {subject}", args.embedding)
        if args.measure == "dynamics":
            step = "epoch" if "epoch" in Path(args.checkpoint[0]).name else "iteration"
            text = write_dynamics(report, list(steps), collected, step)
        else:
            write = write_rescaling if args.measure == "omega" else write_ratios
            text = write(report, collected[0])
        if commit() is not None:
            with (args.output / "summary.txt").open("a", encoding="utf-8") as file:
                file.write(f"at commit {commit()}\n")
    print(text)
    print(f"written to {args.output}")


def norms_in(model: nn.Module, kind: type[nn.Module]) -> str:
    """Return the keys of a model's norms of a kind, such as "EN, SN"."""
    return ", ".join(sorted({target_of(type(m)) for m in model.modules() if isinstance(m, kind)}))


def sort_by_step(paths: Sequence[str]) -> dict[int, str]:
    """Return epoch or iteration -> checkpoint, by the last number in each name, ascending."""
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
