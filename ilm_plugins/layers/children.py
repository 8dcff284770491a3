"""The child modules of layers, whose weights a layer reads without calling them, where it can."""

from collections.abc import Sequence
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


def tensors_of(layer: Any, places: Sequence[tuple[str, str]]) -> tuple[Tensor | None, ...]:
    """Return tensors of a layer, and of its children, by (child or "", name); None if it lacks one.

    Raises:
        RuntimeError: the layer or the child has the tensor, but it is None.
    """
    # Not getattr, which takes half a microsecond. A child's call takes a microsecond, and is left
    # out unless hooks or wrappers fetch its tensors. Hooks are of FSDP and pruning, for example; a
    # wrapper has none of the parameters; accelerate's offloading leaves a weight on the meta device
    # between calls.
    own, buffers, children = layer._parameters, layer._buffers, layer._modules
    tensors: list[Tensor | None] = []
    for child, name in places:
        if child:
            module = children.get(child)
            if module is None:
                tensors.append(None)
                continue
            tensor = module._parameters.get(name)
            if tensor is not None and (tensor.is_meta or module._forward_pre_hooks):
                tensor = None
        else:
            tensor = own.get(name)
            if tensor is None:
                tensor = buffers.get(name)
        if tensor is None:
            return _fetched(layer, places)
        tensors.append(tensor)
    return tuple(tensors)


def _fetched(layer: Any, places: Sequence[tuple[str, str]]) -> tuple[Tensor | None, ...]:
    """Return what :func:`tensors_of` does; each child is called once."""
    children = {child: layer._modules[child]() for child, _ in places if layer._modules.get(child)}
    tensors: list[Tensor | None] = []
    for child, name in places:
        tensor = None
        if not child:
            tensor = getattr(layer, name)  # where it is parametrized, for example
        elif child in children:
            weight, bias = children[child]
            tensor = weight if name == "weight" else bias
        if tensor is None and (not child or child in children):
            value = layer.initial_values.get(name, 0.0)
            raise absent(layer, f"{child}.{name}".lstrip("."), 0.0 if child else value)
        tensors.append(tensor)
    return tuple(tensors)


def absent(layer: nn.Module, name: str, value: float = 0.0) -> RuntimeError:
    """Return the error for a tensor that is None; ``value`` is its neutral value."""
    # A kernel would read it from the address 0.
    return RuntimeError(
        f"{type(layer).__name__}: {name} is None, expected a tensor; to do without it, keep it at "
        f"{value:g}, with requires_grad=False"
    )
