"""A norm that is called for every level of a feature pyramid in turn."""

import copy

from torch import Tensor, nn


class PerLevelNorm(nn.ModuleList):
    """One norm for all levels, which share its parameters; each has its own running statistics.

    RetinaNet's head runs the same modules over every level in turn, as under detectron2's
    CycleBatchNormList. The module must be called once for each level, in order.
    """

    def __init__(self, layer: nn.Module, num_levels: int) -> None:
        shared = {id(parameter): parameter for parameter in layer.parameters()}
        super().__init__(copy.deepcopy(layer, dict(shared)) for _ in range(num_levels))
        self.level = 0

    def forward(self, x: Tensor) -> Tensor:
        layer = self[self.level]
        self.level = (self.level + 1) % len(self)
        return layer(x)


def restart_levels(head: nn.Module, *_inputs) -> None:
    for module in head.modules():
        if isinstance(module, PerLevelNorm):
            module.level = 0
