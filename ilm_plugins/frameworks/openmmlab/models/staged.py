"""Base class of OpenMMLab backbones that consist of a stem and stages."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone(BaseModule):
    """A backbone of a stem and a list of stages, with the options of mmpretrain's backbones."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        out_indices: Sequence[int] = (2,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name, count = type(self).__name__, len(stages)
        if not set(out_indices) <= set(range(count)):
            raise ValueError(f"{name}: out_indices={out_indices!r}; choose from 0 to {count - 1}")
        if frozen_stages not in range(-1, count + 1):
            raise ValueError(f"{name}: frozen_stages={frozen_stages!r}; choose from -1 to {count}")
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.stages][: self.frozen_stages + 1]

    def train(self, mode: bool = True):
        """Set the mode; frozen parts and, under ``norm_eval``, BN and the mixtures stay in eval."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

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
