"""The child modules of layers, whose weights a layer reads without calling them, where it can."""

from typing import Any

from torch import Tensor, nn


class Child(nn.Module):
    """A module with a ``weight`` and a ``bias`` or None; called, it returns copies of both."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self) -> tuple[Tensor, Tensor | None]:
        # A wrapper may free the memory of the parameters, or write to it, as soon as this returns.
        return self.weight.clone(), None if self.bias is None else self.bias.clone()


def weight_and_bias(layer: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Return a child's weight and bias, and call the child only if hooks or wrappers fetch them."""
    # A call takes a microsecond. Hooks are of FSDP and pruning, for example; a wrapper has none of
    # the parameters; accelerate's offloading leaves a weight on the meta device between calls.
    child: Any = layer._modules[name]
    parameters = child._parameters
    is_here = "weight" in parameters and "bias" in parameters and not parameters["weight"].is_meta
    if is_here and not child._forward_pre_hooks:
        return parameters["weight"], parameters["bias"]
    return child()
