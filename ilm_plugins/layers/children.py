"""The child modules of layers, whose weights a layer reads without calling them, where it can."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

#: A child's name, or "", and a tensor's.
TensorNames = Sequence[tuple[str, str]]


class Child(nn.Module):
    """A module with a ``weight`` and a ``bias`` or None; called, it returns copies of both."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        # A wrapper may free the memory of the parameters, or write to it, as soon as this returns.
        weight: Tensor | None = self.weight
        weight, bias = (t if t is None else t.clone() for t in (weight, self.bias))
        return weight, bias


def tensors_of(layer: Any, names: TensorNames) -> tuple[Tensor, ...]:
    """Return the tensors of a layer by their names."""
    # A child is called only if it must fetch its tensors: it has hooks (of FSDP or pruning), it is
    # a wrapper without the parameters, or its weight is on the meta device (accelerate's
    # offloading). A call takes a microsecond, getattr half of one.
    own, buffers, children = layer._parameters, layer._buffers, layer._modules
    tensors: list[Tensor] = []
    for child, name in names:
        if child:
            module = children[child]
            tensor = module._parameters.get(name)
            if module._forward_pre_hooks or (tensor is not None and tensor.is_meta):
                tensor = None
        else:
            tensor = own.get(name)
            if tensor is None:
                tensor = buffers.get(name)
        if tensor is None:
            return _fetched(layer, names)
        tensors.append(tensor)
    return tuple(tensors)


def _fetched(layer: Any, names: TensorNames) -> tuple[Tensor, ...]:
    """Return what :func:`tensors_of` does; each child is called once."""
    called = {child: layer._modules[child]() for child, _ in names if child}
    children = {c: dict(zip(("weight", "bias"), both, strict=True)) for c, both in called.items()}
    tensors: list[Tensor] = []
    for child, name in names:
        # getattr where it is parametrized, for example
        tensor = children[child][name] if child else getattr(layer, name)
        if tensor is None:  # a kernel would read it from the address 0
            neutral = 0.0 if child else layer.initial_values.get(name, 0.0)
            shown = f"{child}.{name}" if child else name
            raise RuntimeError(
                f"{type(layer).__name__}: {shown} is None, expected a tensor; to do without it, "
                f"keep it at {neutral:g}, with requires_grad=False"
            )
        tensors.append(tensor)
    return tuple(tensors)
