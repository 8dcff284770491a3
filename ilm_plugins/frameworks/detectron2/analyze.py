"""Models of detectron2's configs, with the preprocessing of detectron2's DefaultPredictor."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from ..inference import Inference
from . import train


def load(args: argparse.Namespace) -> Inference:
    """Build a config's model, with random weights, and its preprocessing for evaluation.

    Args:
        args: arguments from :func:`ilm_plugins.cli.train_net.parser`, and ``device``, to which the
            model is moved.

    Returns:
        The model in training mode; a function that runs it on (H, W, 3) uint8 images in RGB, which
        it resizes as in the config's evaluation, if that has a size; a text that says how; and a
        batch size of 1.

    Raises:
        UserError: the config cannot be read, or its model cannot be built. Errors of a LazyConfig's
            augmentations pass unchanged.
    """
    # Load it only once: a LazyConfig may register data sets, and a second time would fail.
    cfg = train.load_config(args)
    model = train.model_of(cfg).to(args.device)
    if isinstance(cfg, CfgNode):
        side, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        augmentations = [T.ResizeShortestEdge([side, side], longest)] if side else []
        order = cfg.INPUT.FORMAT
    else:
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper") or {}
        augmentations = [instantiate(a) for a in mapper.get("augmentations", ())]
        order = mapper.get("image_format", "BGR")
    augment = T.AugmentationList(augmentations)

    def forward(images: Sequence[np.ndarray]) -> Any:
        """Resize (H, W, 3) RGB uint8 images, and run the model on them."""
        return model([_model_input(image, augment, order) for image in images])

    words = ", ".join(map(str, augmentations)) or "not resized"
    return Inference(Path(args.config_file).stem, model, forward, 1, words)


def _model_input(image: np.ndarray, augment: T.AugmentationList, order: str) -> dict:
    """Convert an (H, W, 3) RGB image to an input of a detectron2 model.

    Args:
        image: uint8, values 0 to 255; not changed.
        augment: resizes the image, if at all.
        order: "BGR" reverses the channels; any other value leaves them as RGB.

    Returns:
        A dict of "image", the resized image as a tensor with channels first and values from 0 to
        255; and "height" and "width", H and W of the original.
    """
    height, width = image.shape[:2]
    given = T.AugInput(np.ascontiguousarray(image[..., ::-1] if order == "BGR" else image))
    augment(given)
    pixels = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
    return {"image": pixels, "height": height, "width": width}
