"""The command ``analyze``: show what a trained model's adaptive norms compute."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from ilm_plugins.checkpoints import load_weights
from ilm_plugins.configs import resolve
from ilm_plugins.errors import UserError, say
from ilm_plugins.files import check_folder, make_folder
from ilm_plugins.frameworks import Registrations, open_config

from .analysis.collect import collect_ratios, collect_rescaling
from .analysis.images import open_images
from .analysis.tables import TableFolder, write_ratios, write_rescaling


def run(args: argparse.Namespace) -> None:
    """Run a checkpoint on the images; write tables, and print their summary."""
    check_folder(args.output)
    if args.output.exists() and any(args.output.iterdir()):
        raise UserError(f"output folder {str(args.output)!r} is not empty; give a new one")
    Registrations.of_options(args.imports, args.datasets).register(resolve(args.config_file))
    opened = open_config(args.config_file, args.opts, args.device)
    images = open_images(args.images, args.limit, args.classes)
    inference = opened.inference()
    say(f"norms of the model: {opened.describe_norms(inference.model)}")
    say(f"{len(images):,} images of {args.images}, each: {inference.preprocessing}")
    collect, write = collect_rescaling, write_rescaling
    if args.measure == "ratios":
        collect, write = collect_ratios, write_ratios
    size, checkpoint = args.batch_size or inference.batch_size, Path(args.checkpoint)
    load_weights(inference.model, checkpoint)
    torch.manual_seed(0)  # some models apply dropout in evaluation
    with tqdm(images.batches(size), checkpoint.name, -(-len(images) // size)) as batches:
        collected = collect(inference.model, batches, inference.forward, args.match)
    subject = f"{' '.join([inference.name, *args.opts])}, {checkpoint.name}, {len(images):,} images"
    classes = f" ({', '.join(args.classes)})" if args.classes else ""
    subject += f" of {Path(args.images).resolve().name}{classes}"
    make_folder(args.output)
    say(write(TableFolder(args.output, images, subject), collected))
    say(f"written to {args.output}")
