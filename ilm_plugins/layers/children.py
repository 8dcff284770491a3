"""The child modules of layers, whose weights a layer reads without calling them, where it can."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

#: A child's name, or "", and a tensor's; None for a tensor that a layer lacks.
TensorNames = Sequence[tuple[str, str] | None]


class Child(nn.Module):
    """A module with a ``weight`` and a ``bias`` or None; called, it returns copies of both."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        # A wrapper may free the memory of the parameters, or write to it, as soon as this returns.
        weight: Tensor | None = self.weight
        weight, bias = (t if t is None else t.clone() for t in (weight, self.bias))
        return weight, bias


def tensors_of(layer: Any, names: TensorNames) -> tuple[Tensor | None, ...]:
    """Return the tensors of a layer by their names; None where a name is None."""
    # A child is called only if it must fetch its tensors: it has hooks (of FSDP or pruning), it is
    # a wrapper without the parameters, or its weight is on the meta device (accelerate's
    # offloading). A call takes a microsecond, getattr half of one.
    own, buffers, children = layer._parameters, layer._buffers, layer._modules
    tensors: list[Tensor | None] = []
    for full_name in names:
        if full_name is None:
            tensors.append(None)
            continue
        child, name = full_name
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


def _fetched(layer: Any, names: TensorNames) -> tuple[Tensor | None, ...]:
    """Return what :func:`tensors_of` does; each child is called once."""
    called = {c: layer._modules[c]() for c, _ in filter(None, names) if c}
    children = {c: dict(zip(("weight", "bias"), both, strict=True)) for c, both in called.items()}
    tensors: list[Tensor | None] = []
    for full_name in names:
        tensor = None
        if full_name is not None:
            child, name = full_name
            # getattr where it is parametrized, for example
            tensor = children[child][name] if child else getattr(layer, name)
            if tensor is None:  # a kernel would read it from the address 0
                neutral = 0.0 if child else layer.initial_values.get(name, 0.0)
                shown = ".".join(filter(None, full_name))
                raise RuntimeError(
                    f"{type(layer).__name__}: {shown} is None, expected a tensor; to "
                    f"do without it, keep it at {neutral:g}, with requires_grad=False"
                )
        tensors.append(tensor)
    return tuple(tensors)
