"""Training of pix2pix in MMEngine: optimizers, metrics, sample images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..files import replacing
from .metrics import measures
from .pairs import PairedImages

DATASETS.register_module(module=PairedImages)
KINDS = ("input", "output", "target")
#: The file that lists the images of a test.
WRITTEN = "written.txt"


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
    the visualizer's backends; a test writes ``work_dir/test/{input,output,target}/NAME.png``, and
    lists these files in ``work_dir/test/written.txt``. The next test removes them.
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

    def before_test_epoch(self, runner) -> None:
        """Remove the images that an earlier test wrote, before any rank writes its own."""
        folder = Path(runner.work_dir) / "test"
        if not runner.rank:
            for name in listed(folder):
                (folder / name).unlink(missing_ok=True)
            (folder / WRITTEN).unlink(missing_ok=True)
        barrier()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        folder = Path(runner.work_dir) / "test"
        for sample in outputs or []:
            names = {kind: f"{kind}/{sample['name']}.png" for kind in KINDS}
            for name in names.values():
                # Several processes may have the same image.
                if (folder / name).exists() and name not in listed(folder):
                    raise UserError(
                        f"{folder / name} exists, and no test wrote it; give another work_dir"
                    )
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / WRITTEN).open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in names.values())
            for kind, name in names.items():
                write(to_image(sample[kind]), folder / name)


def listed(folder: Path) -> list[str]:
    """Return the names of the images that a test has written to its folder."""
    written = folder / WRITTEN
    return written.read_text(encoding="utf-8").splitlines() if written.is_file() else []


def to_image(pixels: Tensor) -> Image.Image:
    """Convert RGB pixels, (3, H, W) uint8 on the CPU, to an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        image.save(file, format="PNG")
