"""ResNet-20, 56, 110 for 32 x 32 images: He et al., CVPR 2016, Section 4.2."""

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import pad

from .staged import StagedBackbone, conv


@MODELS.register_module()
class CifarResNet(StagedBackbone):
    """The CIFAR ResNet of 6n + 2 layers: n blocks each of 16, 32 and 64 channels, with any norm.

    Shape: (N, 3, H, W) to (N, 16, H, W), (N, 32, H/2, W/2), (N, 64, H/4, W/4).
    """

    # Shortcuts are the paper's option A: where the width doubles, a shortcut takes every second
    # pixel and pads the new channels with zeros.

    def __init__(self, depth: int, norm_cfg: dict | None = None, **options) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"CifarResNet: depth={depth!r} is not 6n + 2; choose 20, 56 or 110, for example"
            )
        norm_cfg = norm_cfg or {"type": "BN"}
        stages, channels = [], 16
        for width in (16, 32, 64):
            blocks = []
            for _ in range(depth // 6):
                blocks.append(BasicBlock(channels, width, norm_cfg))
                channels = width
            stages.append(nn.Sequential(*blocks))
        super().__init__(conv(3, 16, 3, norm_cfg), stages, **options)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; where the width grows, H and W are halved."""

    def __init__(self, channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.stride = 1 if channels == out_channels else 2
        self.new_channels = out_channels - channels
        self.conv1 = conv(channels, out_channels, 3, norm_cfg, self.stride)
        self.conv2 = conv(out_channels, out_channels, 3, norm_cfg, act_cfg=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return self.relu(shortcut + self.conv2(self.conv1(x)))
