"""torchvision: the modules in which layers may apply activations."""

from types import ModuleType
from typing import ClassVar

from ..foreign_norms import FRAMEWORKS, Framework
from ..surgery.containers import IN_TURN, RESIDUAL, followed


def add_containers(_module: ModuleType) -> None:
    FRAMEWORKS["torchvision"] = ResNets()


class ResNets(Framework):
    """ResNets, and the backbones of detectors and segmenters, which run a model's children."""

    containers: ClassVar = {
        "torchvision.models._utils.IntermediateLayerGetter": IN_TURN,
        "torchvision.models.resnet.BasicBlock": RESIDUAL,
        "torchvision.models.resnet.Bottleneck": RESIDUAL,
        "torchvision.models.resnet.ResNet": followed("bn1", "relu", "_forward_impl"),
    }
