"""Models of torchvision and timm, by name, with one of our layers as their norm."""

import importlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import UserError
from ..layers import NORMS, OptionError, parse_norm
from . import installed
from .subject import Subject

#: ImageNet's mean and deviation, RGB, of images of 0..1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIBRARIES = ("torchvision", "timm")


def load(
    model: str, norm: str | None, num_classes: int | None, size: int | None, device: str
) -> Subject:
    """A model, untrained.

    Args:
        model: "torchvision:resnet18" or "timm:resnet18".
        norm: as in detectron2's NORM: "EN" or "EN(reduction=16)".
        num_classes: of its last layer; the model's own by default.
        size: side of its square images; 224 by default, or what timm has for it.

    Raises:
        UserError: there is no such model, or it takes no norm.
        OptionError: the norm is unknown, or has no such option.
    """
    library, _, name = model.partition(":")
    if library not in LIBRARIES or not name:
        raise UserError(f"--model {model!r}; give torchvision:NAME or timm:NAME")
    if not installed(library):
        raise UserError(f"--model {model}: {library} is not installed; pip install {library}")
    built = _build(library, name, _norm_layer(norm), num_classes, model)
    mean, std, side = *IMAGENET, 224
    if library == "timm":
        data = importlib.import_module("timm.data").resolve_model_data_config(built)
        mean, std, side = data["mean"], data["std"], data["input_size"][-1]
    side = size or side
    built.to(device)

    def forward(images: Sequence[np.ndarray]) -> Tensor:
        return built(preprocess(images, side, mean, std).to(device))

    words = (
        f"short side to {side} pixels, central square, mean {_some(mean)}, std {_some(std)} (RGB "
        "of 0..1)"
    )
    return Subject(name, built, forward, 32, words)


def _norm_layer(norm: str | None) -> partial:
    if norm is None:
        raise UserError(f"--model needs --norm; give one of {', '.join(NORMS)}")
    parsed = parse_norm(norm)
    if parsed is None:
        raise UserError(f"--norm {norm!r} is unknown; give one of {', '.join(NORMS)}")
    return partial(NORMS[parsed[0]], **parsed[1])


def _build(
    library: str, name: str, norm_layer: partial, num_classes: int | None, given: str
) -> nn.Module:
    module = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    build = module.get_model if library == "torchvision" else module.create_model
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return build(name, norm_layer=norm_layer, **options)
    except OptionError:
        raise
    except Exception as error:  # models raise what they like
        raise UserError(
            f"--model {given} cannot be built with norm_layer: {type(error).__name__}: "
            f"{' '.join(str(error).split())}; give another model, or use "
            "ilm_plugins.analysis.collect from Python"
        ) from error


def _some(numbers: Sequence[float]) -> str:
    return ", ".join(f"{x:.3g}" for x in numbers)


def preprocess(
    images: Sequence[np.ndarray], size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(H, W, 3) uint8 images to (N, 3, size, size): central squares, resized and standardized."""
    return torch.stack([_square(image, size, mean, std) for image in images])


def _square(image: np.ndarray, size: int, mean, std) -> Tensor:
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    height, width = x.shape[2:]
    scale = size / min(height, width)
    if scale != 1:
        shape = [max(size, round(side * scale)) for side in (height, width)]
        x = interpolate(x, shape, mode="bilinear", antialias=True)
    top, left = ((side - size) // 2 for side in x.shape[2:])
    x = x[0, :, top : top + size, left : left + size]
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
