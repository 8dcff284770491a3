"""BN-Inception: Ioffe and Szegedy, ICML 2015; "Inception v2" in the papers on normalization."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .staged import StagedBackbone, conv

# Stages of Inception units. Each unit has the arguments of Inception between channels and norm_cfg.
STAGES = (
    (
        (64, (64, 64), (64, 96), "avg", 32),  # 3a
        (64, (64, 96), (64, 96), "avg", 64),
    ),
    (
        (0, (128, 160), (64, 96), "max", 0),  # 3c
        (224, (64, 96), (96, 128), "avg", 128),  # 4a
        (192, (96, 128), (96, 128), "avg", 128),
        (160, (128, 160), (128, 160), "avg", 128),
        (96, (128, 192), (160, 192), "avg", 128),
    ),
    (
        (0, (128, 192), (192, 256), "max", 0),  # 4e
        (352, (192, 320), (160, 224), "avg", 128),  # 5a
        (352, (192, 320), (192, 224), "max", 128),
    ),
)


@MODELS.register_module()
class BNInception(StagedBackbone):
    """BN-Inception with any normalization: 69 convolutions, each followed by norm and ReLU.

    11.29 M parameters with BN and a classifier of 1000 classes, 2.03 G multiply-adds at 224 x 224
    (EN paper, Table 3: 11.29 M and 2.056 G). Units 4c and 4d have 608 output channels, as in
    common implementations; the 2015 paper's table says 576. All widths are multiples of 32.

    Shape: (N, 3, H, W) to (N, 320, H/8, W/8), (N, 608, H/16, W/16), (N, 1024, H/32, W/32).
    """

    def __init__(self, norm_cfg: dict | None = None, **options) -> None:
        norm_cfg = norm_cfg or {"type": "BN"}
        stem = nn.Sequential(
            conv(3, 64, 7, norm_cfg, stride=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            conv(64, 64, 1, norm_cfg),
            conv(64, 192, 3, norm_cfg),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        stages, channels = [], 192
        for units in STAGES:
            stage = []
            for branches in units:
                stage.append(Inception(channels, *branches, norm_cfg))
                channels = stage[-1].out_channels
            stages.append(nn.Sequential(*stage))
        super().__init__(stem, stages, **options)


class Inception(nn.Module):
    """An Inception unit: four branches, 1x1, 1x1-3x3, 1x1-3x3-3x3 and pooling-1x1, concatenated."""

    # The branches' widths are single, double, triple (of which both 3x3 have the second) and
    # projection. With single and projection 0, the unit halves the resolution and lacks the 1x1
    # convolutions of the first branch and the last.

    def __init__(
        self,
        channels: int,
        single: int,
        double: tuple[int, int],
        triple: tuple[int, int],
        pool: str,
        projection: int,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        stride = 1 if single else 2
        pooling = nn.AvgPool2d if pool == "avg" else nn.MaxPool2d
        branches = {
            "two": nn.Sequential(
                conv(channels, double[0], 1, norm_cfg),
                conv(*double, 3, norm_cfg, stride),
            ),
            "three": nn.Sequential(
                conv(channels, triple[0], 1, norm_cfg),
                conv(*triple, 3, norm_cfg),
                conv(triple[1], triple[1], 3, norm_cfg, stride),
            ),
        }
        if single:
            branches["one"] = conv(channels, single, 1, norm_cfg)
            project = conv(channels, projection, 1, norm_cfg)
            branches["pool"] = nn.Sequential(pooling(3, 1, padding=1), project)
        else:
            branches["pool"] = pooling(3, 2, ceil_mode=True)
        self.branches = nn.ModuleDict(branches)
        self.out_channels = double[1] + triple[1] + (single + projection or channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches.values()], 1)
