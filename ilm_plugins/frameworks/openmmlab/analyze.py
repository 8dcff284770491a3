"""Models of MMEngine's configs, run by their test pipeline and ``test_step``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm

from ...errors import UserError
from ..inference import Inference
from . import train


def load(args: argparse.Namespace) -> Inference:
    """Build a config's model, with random weights, and the pipeline of its ``test_dataloader``.

    A model with a method ``image_preparation(dataset)`` prepares images by it, not by the pipeline.
    Steps of the pipeline that load files are left out. MMEngine's default scope is set to the
    config's.

    Args:
        args: arguments from :func:`ilm_plugins.cli.train_net.parser`, and ``device``, to which the
            model is moved.

    Returns:
        The model, not yet in evaluation mode, with BN in place of SyncBN; and a function that runs
        its ``test_step`` on RGB images.

    Raises:
        UserError: the config cannot be read, or lacks a model or a pipeline for testing. Errors of
            building the model or the pipeline pass unchanged.
    """
    cfg = train.load_config(args)
    model = revert_sync_batchnorm(train.model_of(cfg)).to(args.device)
    name = Path(args.config_file).stem
    loader = cfg.get("test_dataloader") or {}
    dataset = loader.get("dataset") or {}
    batch_size = loader.get("batch_size", 1)
    if hasattr(model, "image_preparation"):
        prepare, words = model.image_preparation(dataset)

        def run_prepared(images: Sequence[np.ndarray]) -> Any:
            """Run ``test_step`` on (H, W, 3) RGB images, prepared by the model's own function."""
            return model.test_step({"input": [prepare(image) for image in images]})

        return Inference(name, model, run_prepared, batch_size, words)
    while dataset and "pipeline" not in dataset:
        dataset = dataset.get("dataset") or {}
    if not dataset:
        raise UserError(
            f"{args.config_file} has no test_dataloader.dataset.pipeline, by which images are "
            "prepared for its model; define it"
        )
    steps = [step for step in dataset["pipeline"] if not _loads(step)]
    bgr = any(_loads(step, image=True) for step in dataset["pipeline"])
    pipeline = Compose(steps)

    def run_pipeline(images: Sequence[np.ndarray]) -> Any:
        """Run ``test_step`` on (H, W, 3) RGB images, prepared by the config's test pipeline."""
        pixels = (image[..., ::-1] if bgr else image for image in images)
        samples = [pipeline(_loaded_image(i, image)) for i, image in enumerate(pixels)]
        return model.test_step(pseudo_collate(samples))

    words = "the config's test pipeline, " + " > ".join(str(step["type"]) for step in steps)
    return Inference(name, model, run_pipeline, batch_size, words)


def _loads(step: dict, image: bool = False) -> bool:
    """Whether a step of a pipeline loads a file; with ``image``, whether it loads an image."""
    kind = str(step["type"]).rsplit(".", 1)[-1]
    return kind.startswith("LoadImage" if image else "Load")


def _loaded_image(number: int, image: np.ndarray) -> dict:
    """Return the dict that LoadImageFromFile would make of an image in memory.

    Args:
        number: the image's number, in the dict as "img_id".
        image: pixels (H, W, 3), which are copied; the config decides whether BGR or RGB.
    """
    height, width = image.shape[:2]
    return {
        "img": np.array(image),
        "img_id": number,
        "img_path": "",
        "img_shape": (height, width),
        "ori_shape": (height, width),
        "height": height,
        "width": width,
    }
