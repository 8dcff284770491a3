"""Translate a folder of images by a trained generator; see ``tools/translate.py``."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from .. import checkpoints
from ..checkpoints import CheckpointError
from ..data.images import read_image
from ..errors import UserError
from ..frameworks.command import add_traceback, command, example, progress
from ..frameworks.openmmlab.checkpoints import nested_dicts, settings
from ..frameworks.openmmlab.norms import TORCH_NORMS
from .networks import Pix2Pix, to_bytes, to_signed
from .pairs import check_images, crop_half, image_files, to_tensor
from .training import to_image, write


def main(argv: Sequence[str] | None = None) -> int:
    """Translate a folder of images by a trained generator; see ``tools/translate.py``.

    Args:
        argv: words of the command line; None for ``sys.argv[1:]``.

    Returns:
        The exit status: 0; 2 after any error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    parser = argparse.ArgumentParser(
        description="Translate a folder of images, of any size, to OUTPUT/NAME.png.",
        epilog=example("translate output/facades/epoch_200.pth LABELS PHOTOS --batch-size 8"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="of the command train; it has the model's config")
    parser.add_argument("input", help="folder of images")
    parser.add_argument("output", help="folder to write to, made if missing")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument(
        "--half", choices=("left", "right"), help="translate this half of pairs side by side"
    )
    parser.add_argument(
        "--unsafe",
        "--unsafe-checkpoints",
        action="store_true",
        help="run code that the checkpoint holds",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_traceback(parser)
    args = parser.parse_args(argv)
    return command(lambda: translate(args), args, resumes=False)


def translate(args: argparse.Namespace) -> None:
    """Translate the folder of a parsed command line to files OUTPUT/NAME.png.

    The output folder is created if it is missing, and files of the same names are replaced. Images
    whose sides are not multiples of the generator's are padded, which is printed, and cropped back.
    Images of one size that follow each other in the order of names share a batch.

    Args:
        args: the options of :func:`main`.

    Raises:
        UserError: the checkpoint is not one of a Pix2Pix, the batch size is below 1, the device is
            not available, or the output folder is the input folder or cannot be written; there are
            no images, or some, of which up to 20 are named, are unreadable.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}; give at least 1")
    source, target = Path(args.input).expanduser(), Path(args.output).expanduser()
    if source.exists() and target.exists() and target.samefile(source):
        raise UserError(f"OUTPUT {args.output!r} is INPUT; give another folder")
    with checkpoints.loading(unsafe=args.unsafe):
        model = load_model(args.checkpoint, args.device, args.unsafe)
    multiple = model.generator.multiple
    files = image_files(source)
    check_images(files)
    found = batches(files, args.batch_size, args.half)
    try:
        for names, images in progress(found, len(files), size=lambda batch: len(batch[0])):
            height, width = images.shape[2:]
            if height % multiple or width % multiple:
                up = (-(-side // multiple) * multiple for side in (width, height))
                padded = "{} x {}".format(*up)
                print(
                    f"{', '.join(names)}: {width} x {height} padded to {padded}, and cropped back"
                )
            with torch.inference_mode():
                results = to_bytes(model.translate(to_signed(images.to(args.device)))).cpu()
            for name, result in zip(names, results, strict=True):
                write(to_image(result), target / f"{name}.png")
    except OSError as error:
        raise UserError(f"output folder {args.output!r} cannot be written: {error}") from error
    print(f"{args.output}: {len(files)} images")


def load_model(checkpoint: str, device: str = "cpu", unsafe: bool = False) -> Pix2Pix:
    """Build the model of a checkpoint from the config in it, in evaluation mode, with its weights.

    The weights are the averaged ones if the training kept an EMA. In this process, it also sets
    MMEngine's default scope.

    Args:
        checkpoint: file of a :class:`Pix2Pix` trained by tools/train_net.py.
        device: device of the network, as torch names it.
        unsafe: whether to run code that the checkpoint holds.

    Raises:
        UserError: the checkpoint is missing or not one of a Pix2Pix, it holds code and ``unsafe``
            is False, or the device is not available.
    """
    try:
        state = checkpoints.read(checkpoint, unsafe)
        model = MODELS.build(_model_config(checkpoint, state["meta"]["cfg"], unsafe))
        if not isinstance(model, Pix2Pix):
            raise TypeError(f"its model is a {type(model).__name__}")
        model.load_state_dict(state["state_dict"])
    except CheckpointError:
        raise
    except Exception as error:  # an invalid file can raise anything
        raise UserError(
            f"{checkpoint} is not a checkpoint of a Pix2Pix by the command train: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {' '.join(str(error).split())[:200]}") from error


def _model_config(checkpoint: str, text: str, unsafe: bool) -> dict:
    """Return the model's config from the Python text of a checkpoint's config.

    It also sets MMEngine's default scope: with ``unsafe`` to the config's own, else to mmengine.

    Args:
        checkpoint: file name, for error messages.
        text: the config; with ``unsafe`` it is executed, else its literals are parsed.
        unsafe: whether to execute the text.

    Raises:
        CheckpointError: without ``unsafe``, the text has more than literals, or names a type that
            is not registered.
        SyntaxError: without ``unsafe``, the text is not Python. With it, errors of the text itself
            pass unchanged.
        KeyError: without ``unsafe``, the config has no model.
    """
    if unsafe:
        cfg = Config.fromstring(text, ".py")
        init_default_scope(cfg.get("default_scope") or "mmengine")
        return cfg.model
    code = f"which may run code{checkpoints.TRUST}"
    try:
        model = settings(text)["model"]
    except ValueError as error:
        what = f"checkpoint {checkpoint!r}: in its config {error}, {code}"
        raise CheckpointError(what) from None
    init_default_scope("mmengine")
    # MMEngine would import and call any other name.
    known = TORCH_NORMS | MODELS.module_dict
    names = {*known, *(f"{kind.__module__}.{kind.__qualname__}" for kind in known.values())}
    for _, part in nested_dicts(model, "model"):
        if "_scope_" in part or part.get("type", "IN") not in names:
            kind = part.get("type")
            raise CheckpointError(f"checkpoint {checkpoint!r}: its config names {kind!r}, {code}")
    return model


def batches(
    files: Sequence[Path], size: int, half: str | None = None
) -> Iterator[tuple[list[str], Tensor]]:
    """Read image files in batches of images of equal height and width.

    Only files that follow each other share a batch, so the order stays.

    Args:
        files: image files.
        size: largest number of images in a batch.
        half: "left" or "right" to crop that half; None for whole images.

    Yields:
        The names without endings, and the images, (N, 3, H, W) RGB uint8.

    Raises:
        OSError: a file is missing or not an image.
    """
    images = ((path.stem, to_tensor(crop_half(read_image(path), half))) for path in files)
    for _, alike in groupby(images, key=lambda item: item[1].shape):
        while batch := list(islice(alike, size)):
            names, pixels = zip(*batch, strict=True)
            yield list(names), torch.stack(pixels)
