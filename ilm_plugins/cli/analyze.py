"""The command ``analyze``: show what a trained model's adaptive norms compute."""

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..checkpoints import load_weights
from ..configs import resolve
from ..experiments.analysis.collect import collect_ratios, collect_rescaling
from ..experiments.analysis.tables import Report, write_ratios, write_rescaling
from ..experiments.data.images import open_images
from ..files import check_new, filling
from ..frameworks import open_config
from ..frameworks.registrations import Registrations
from ..frameworks.run_environment import commit
from ..layers.autoencoder import AutoencoderNorm
from ..layers.mixture import MixtureNorm
from ..surgery.norms import target_of


def run(args: argparse.Namespace) -> None:
    """Run a checkpoint on the images; write tables, and print their summary."""
    check_new(args.output)
    Registrations.of_options(args.imports, args.datasets).register(resolve(args.config_file))
    opened = open_config(args.config_file, args.opts, args.device)
    images = open_images(args.images, args.limit, args.classes)
    inference = opened.inference()
    opened.print_norms(inference.model)
    print(f"{len(images):,} images of {args.images}, each: {inference.preprocessing}")
    is_mixture = args.measure == "ratios"
    collect, write = collect_rescaling, write_rescaling
    if is_mixture:
        collect, write = collect_ratios, write_ratios
    size, checkpoint = args.batch_size or inference.batch_size, Path(args.checkpoint)
    load_weights(inference.model, checkpoint)
    torch.manual_seed(0)  # some models apply dropout in evaluation
    with tqdm(images.batches(size), checkpoint.name, -(-len(images) // size)) as batches:
        collected = collect(inference.model, batches, inference.forward, args.match)
    kind = MixtureNorm if is_mixture else AutoencoderNorm
    name = f"{norms_in(inference.model, kind)} in {inference.name}"
    if args.opts:
        name += " with overrides"  # whose name may be of another norm
    classes = f" ({', '.join(args.classes)})" if args.classes else ""
    subject = f"{len(images):,} images of {Path(args.images).resolve().name}{classes}"
    with filling(args.output):
        text = write(
            Report(args.output, images, f"{name}, {checkpoint.name}, {subject}"), collected
        )
        if commit() is not None:
            with (args.output / "summary.txt").open("a", encoding="utf-8") as file:
                file.write(f"at commit {commit()}\n")
    print(text)
    print(f"written to {args.output}")


def norms_in(model: nn.Module, kind: type[nn.Module]) -> str:
    """Return the keys of a model's norms of a kind, such as "EN, SN"."""
    return ", ".join(sorted({target_of(type(m)) for m in model.modules() if isinstance(m, kind)}))
