"""Training of pix2pix in MMEngine: optimizers, metrics, sample images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS
from PIL import Image
from torch import Tensor, nn

from ..files import replacing
from .metrics import measures
from .pairs import PairedImages

DATASETS.register_module(module=PairedImages)
KINDS = ("input", "output", "target")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimizerEach:
    """Builds one optimizer for each network of a model, from {name of the network: config}."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # paramwise_cfg is for networks whose config names no other one.
        self.cfg, self.paramwise_cfg = optim_wrapper_cfg, paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        model = getattr(model, "module", model)
        wrappers = {
            name: build_optim_wrapper(
                getattr(model, name), {"paramwise_cfg": self.paramwise_cfg, **cfg}
            )
            for name, cfg in self.cfg.items()
        }
        return OptimWrapperDict(**wrappers)


@METRICS.register_module()
class ImageTransfer(BaseMetric):
    """Computes the metrics of :mod:`.metrics`, also of the mean image of training, if known."""

    def __init__(self, lpips_weights: str | None = None, **options) -> None:
        super().__init__(**options)
        self.measures = measures(lpips_weights)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        mean = (self.dataset_meta or {}).get("mean_image")
        for sample in data_samples:
            images = {"": sample["output"], "mean_image/": mean}
            self.results.append(
                {
                    prefix + name: measure(image, sample["target"])
                    for prefix, image in images.items()
                    for name, measure in self.measures.items()
                    if image is not None
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


@HOOKS.register_module()
class TranslatedImages(Hook):
    """Writes a grid of ``number`` samples at each validation, and every image at a test.

    A row has input, output and target. A grid goes to ``work_dir/samples/epoch_NUMBER.png`` and to
    the visualizer's backends; a test writes ``test/{input,output,target}/NAME.png`` to the folder
    of its log, ``work_dir/TIME``.
    """

    def __init__(self, number: int = 8) -> None:
        self.number = number
        self.rows: list[dict] = []

    def before_val_epoch(self, runner) -> None:
        self.rows = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.rows += (outputs or [])[: self.number - len(self.rows)]

    def after_val_epoch(self, runner, metrics=None) -> None:
        if runner.rank or not self.rows:
            return
        rows = [torch.cat([row[kind] for kind in KINDS], 2) for row in self.rows]
        image = to_image(torch.cat(rows, 1))
        write(image, Path(runner.work_dir) / "samples" / f"epoch_{runner.epoch:04d}.png")
        runner.visualizer.add_image("samples", np.array(image), runner.epoch)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs or []:
            for kind in KINDS:
                path = Path(runner.log_dir) / "test" / kind / f"{sample['name']}.png"
                write(to_image(sample[kind]), path)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert RGB pixels, (3, H, W) uint8 on the CPU, to an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        image.save(file, format="PNG")
