"""Models of torchvision and timm, by name, with a layer of this package as their norm."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
    parsed = parse_norm(norm or "")
    if parsed is None:
        told = "--model needs --norm" if norm is None else f"--norm {norm!r} is unknown"
        raise UserError(f"{told}; give one of {', '.join(NORMS)}")
    options = {"norm_layer": partial(NORMS[parsed[0]], **parsed[1])}
    options |= {} if num_classes is None else {"num_classes": num_classes}
    with as_user_error(
        f"--model {model} cannot be built with norm_layer",
        "give another model, or use ilm_plugins.analysis.collect from Python",
    ):
        if library == "torchvision":
            from torchvision import models

            built = models.get_model(name, **options)
            sizes = {} if size is None else {"crop_size": size, "resize_size": size}
            transform = models.get_model_weights(name).DEFAULT.transforms(**sizes)
        else:
            import timm

            built = timm.create_model(name, **options)
            config = timm.data.resolve_model_data_config(built)
            config |= {} if size is None else {"input_size": (3, size, size)}
            transform = timm.data.create_transform(**config)
    built.to(device)

    def forward(images: Sequence[np.ndarray]) -> Tensor:
        """Preprocess (H, W, 3) RGB uint8 images, and run the model on them as one batch."""
        batch = torch.stack([transform(Image.fromarray(image)) for image in images])
        return built(batch.to(device))

    return Inference(name, built, forward, 32, " ".join(str(transform).split()))
