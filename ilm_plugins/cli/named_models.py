"""Models of torchvision and timm, by name, with a layer of this package as their norm."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError, missing
from ..frameworks import installed
from ..frameworks.command import as_user_error
from ..frameworks.inference import Inference
from ..layers import NORMS, parse_norm

LIBRARIES = ("torchvision", "timm")


def load(
    model: str, norm: str | None, num_classes: int | None, size: int | None, device: str
) -> Inference:
    """Build a model with random weights, and its library's preprocessing for evaluation.

    Args:
        model: "torchvision:resnet18" or "timm:resnet18".
        norm: the layer that replaces the model's norms, such as "EN" or "EN(reduction=16)".
        num_classes: outputs of the last layer; None for the model's default.
        size: side of the square input images in pixels; None for the model's default.
        device: of the model, such as "cpu" or "cuda:0".

    Returns:
        The model and its preprocessing; ``forward`` takes (H, W, 3) RGB uint8 images of any size,
        and the batch size is 32.

    Raises:
        UserError: ``model`` names no library and model, the library is not installed, the model
            does not exist or does not accept ``norm_layer``, or the norm is None or unknown.
        OptionError: the norm has no such option, or its options cannot be parsed.
    """
    library, _, name = model.partition(":")
    if library not in LIBRARIES or not name:
        raise UserError(f"--model {model!r}; give torchvision:NAME or timm:NAME")
    if not installed(library):
        raise missing(f"--model {model}", library)
    norm_layer = _norm_layer(norm)
    options = {} if num_classes is None else {"num_classes": num_classes}
    build = _build_torchvision if library == "torchvision" else _build_timm
    with as_user_error(
        f"--model {model} cannot be built with norm_layer",
        "give another model, or use ilm_plugins.analysis.collect from Python",
    ):
        built, transform = build(name, size, norm_layer=norm_layer, **options)
    built.to(device)

    def forward(images: Sequence[np.ndarray]) -> Tensor:
        """Preprocess (H, W, 3) RGB uint8 images, and run the model on them as one batch."""
        batch = torch.stack([transform(Image.fromarray(image)) for image in images])
        return built(batch.to(device))

    return Inference(name, built, forward, 32, " ".join(str(transform).split()))


def _norm_layer(norm: str | None) -> partial:
    """Return the constructor of the layer that ``--norm`` names, with its options bound.

    Raises:
        UserError: ``norm`` is None, or names no layer.
        OptionError: ``norm`` cannot be parsed. Names of options are not checked.
    """
    if norm is None:
        raise UserError(f"--model needs --norm; give one of {', '.join(NORMS)}")
    parsed = parse_norm(norm)
    if parsed is None:
        raise UserError(f"--norm {norm!r} is unknown; give one of {', '.join(NORMS)}")
    return partial(NORMS[parsed[0]], **parsed[1])


def _build_torchvision(name: str, size: int | None, **options: Any) -> tuple[nn.Module, Callable]:
    """Build a model; return it and the transform (PIL image -> tensor) of its default weights.

    The weights themselves are not loaded.

    Args:
        name: of the model in torchvision.
        size: side in pixels to which images are resized and cropped; None for the transform's own.
        options: for the model's constructor.
    """
    models = importlib.import_module("torchvision.models")
    sizes = {} if size is None else {"crop_size": size, "resize_size": size}
    transform = models.get_model_weights(name).DEFAULT.transforms(**sizes)
    return models.get_model(name, **options), transform


def _build_timm(name: str, size: int | None, **options: Any) -> tuple[nn.Module, Callable]:
    """Build a model; return it and the transform (PIL image -> tensor) of its configuration.

    Args:
        name: of the model in timm.
        size: side of the transformed images in pixels; None for the configuration's own.
        options: for the model's constructor.
    """
    model = importlib.import_module("timm").create_model(name, **options)
    data = importlib.import_module("timm.data")
    config = data.resolve_model_data_config(model)
    if size is not None:
        config["input_size"] = (3, size, size)
    return model, data.create_transform(**config)
