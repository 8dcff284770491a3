"""Base class of OpenMMLab backbones that consist of a stem and stages."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn


class StagedBackbone(BaseModule):
    """A backbone of a stem and stages; ``out_indices`` are the stages whose output is returned."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        out_indices: Sequence[int] = (2,),
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.out_indices = tuple(out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs[i] for i in self.out_indices)


def conv(
    channels: int,
    out_channels: int,
    kernel_size: int,
    norm_cfg: dict,
    stride: int = 1,
    **options,
) -> ConvModule:
    """Build a convolution padded by half its kernel, then norm and, by default, ReLU."""
    padding = kernel_size // 2
    return ConvModule(
        channels, out_channels, kernel_size, stride, padding, norm_cfg=norm_cfg, **options
    )
