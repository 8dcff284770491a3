"""The command ``translate``: translate a folder of images by a trained pix2pix."""

import argparse

import numpy as np
from tqdm import tqdm

from ..checkpoints import load_weights
from ..errors import UserError, say
from ..files import check_folder
from ..frameworks import open_config
from ..images import read_image
from ..pix2pix.pairs import image_files


def run(args: argparse.Namespace) -> None:
    """Write the translation of each image of the input folder, in place of files of its name."""
    opened = open_config(args.config, device=args.device)
    files = image_files(args.input)
    if args.output.exists() and args.output.samefile(args.input):
        raise UserError(f"OUTPUT {str(args.output)!r} is INPUT; give another folder")
    check_folder(args.output)
    inference = opened.inference()
    say(f"norms of the model: {opened.describe_norms(inference.model)}")
    if not hasattr(inference.model, "preprocess_images"):
        raise UserError(f"{args.config} has no model that translates images; give one of pix2pix")
    # It needs MMEngine, which open_config asks for.
    from ..pix2pix.training import to_image, write

    load_weights(inference.model, args.checkpoint)
    inference.model.eval()
    for name, path in tqdm(files.items()):
        (translated,) = inference.forward([np.asarray(read_image(path))])
        write(to_image(translated["output"]), args.output / f"{name}.png")
    say(f"{args.output}: {len(files)} images")
