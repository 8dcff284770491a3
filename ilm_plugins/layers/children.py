"""The child modules of layers, whose weights a layer reads without calling them, where it can."""

from typing import Any

from torch import Tensor, nn


class Child(nn.Module):
    """A module with a ``weight`` and a ``bias`` or None; called, it returns copies of both."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        # A wrapper may free the memory of the parameters, or write to it, as soon as this returns.
        weight: Tensor | None = self.weight
        weight, bias = (t if t is None else t.clone() for t in (weight, self.bias))
        return weight, bias


def weight_and_bias(
    layer: nn.Module, name: str, has_bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return a child's weight and bias, and call the child only if hooks or wrappers fetch them.

    Raises:
        RuntimeError: the weight is None, or the bias, and the child must have one.
    """
    # A call takes a microsecond. Hooks are of FSDP and pruning, for example; a wrapper has none of
    # the parameters; accelerate's offloading leaves a weight on the meta device between calls.
    child: Any = layer._modules[name]
    parameters = child._parameters
    weight = parameters.get("weight")
    is_here = weight is not None and not weight.is_meta and "bias" in parameters
    if is_here and not child._forward_pre_hooks:
        bias = parameters["bias"]
        if bias is not None or not has_bias:
            return weight, bias
    else:
        weight, bias = child()
    if weight is None or (bias is None and has_bias):
        raise absent(layer, f"{name}.weight" if weight is None else f"{name}.bias")
    return weight, bias


def absent(layer: nn.Module, name: str, value: float = 0.0) -> RuntimeError:
    """Return the error for a tensor that is None; ``value`` is its neutral value."""
    # A kernel would read it from the address 0.
    return RuntimeError(
        f"{type(layer).__name__}: {name} is None, expected a tensor; to do without it, keep it at "
        f"{value:g}, with requires_grad=False"
    )
