"""A test on altered images: torchvision's functions as a transform of OpenMMLab's pipelines."""

import zlib
from pathlib import Path

import torch
from mmcv.transforms import TRANSFORMS, BaseTransform
from torchvision.transforms.v2 import functional


@TRANSFORMS.register_module()
class TorchvisionTransform(BaseTransform):
    """Apply a function of ``torchvision.transforms.v2.functional`` to the image, (H, W, 3) uint8.

    Noise is drawn anew for each image, seeded by the name of its file: the same in every test.

    Args:
        name: the function, such as "adjust_gamma".
        options: the function's own arguments, such as ``gamma=2.0``.
    """

    def __init__(self, name: str, **options) -> None:
        self.function, self.options = getattr(functional, name), options

    def transform(self, results: dict) -> dict:
        rgb = torch.from_numpy(results["img"][..., ::-1].copy()).permute(2, 0, 1)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(zlib.crc32(Path(results["img_path"]).name.encode()))
            rgb = self.function(rgb, **self.options)
        results["img"] = rgb.permute(1, 2, 0).numpy()[..., ::-1].copy()
        return results
