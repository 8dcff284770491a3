"""The command ``translate``: translate a folder of images by a trained pix2pix."""

import argparse
from collections.abc import Sequence

import torch

from ..errors import UserError
from ..frameworks import open_config
from .command import command, config_file, new_parser, user_path


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return command(lambda: translate(args))


def parser() -> argparse.ArgumentParser:
    p = new_parser(
        "Translate a folder of images, of any size, to OUTPUT/NAME.png.",
        "translate ilm_plugins://pix2pix/facades_in_in.py \\\n"
        "    output/facades/epoch_200.pth LABELS PHOTOS",
    )
    p.add_argument("config", type=config_file, help="of the training")
    p.add_argument("checkpoint", help="of the training")
    p.add_argument("input", type=user_path, help="folder of images")
    p.add_argument("output", type=user_path, help="folder to write to, made if missing")
    what = "translate this half of pairs side by side"
    p.add_argument("--half", choices=("left", "right"), help=what)
    p.add_argument("--unsafe", action="store_true", help="run code that the checkpoint holds")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


def translate(args: argparse.Namespace) -> None:
    """Write the translation of each image of the input folder, in place of files of its name."""
    import numpy as np
    from tqdm import tqdm

    from .. import checkpoints
    from ..data.images import read_image
    from ..pix2pix.pairs import crop_half, image_files

    files = image_files(args.input)
    if args.output.exists() and args.output.samefile(args.input):
        raise UserError(f"OUTPUT {str(args.output)!r} is INPUT; give another folder")
    inference = open_config(args.config, device=args.device).inference()
    if not hasattr(inference.model, "preprocess_images"):
        raise UserError(f"{args.config} has no model that translates images; give one of pix2pix")
    from ..pix2pix.training import to_image, write  # needs MMEngine, which open_config asks for

    state = checkpoints.read(args.checkpoint, args.unsafe)
    inference.model.load_state_dict(state["state_dict"])
    inference.model.eval()
    for name, path in tqdm(files.items()):
        (found,) = inference.forward([np.asarray(crop_half(read_image(path), args.half))])
        write(to_image(found["output"]), args.output / f"{name}.png")
    print(f"{args.output}: {len(files)} images")
