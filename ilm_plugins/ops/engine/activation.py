"""The activations that kernels apply to the normalized values, in the same pass."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_aten = torch.ops.aten


class Activation(NamedTuple):
    """An activation that a layer applies to the normalized values, in the same pass.

    ``layer.fused_activation = Activation("silu")`` makes ``layer(x)`` the activation of the
    normalized x. NaN, infinity and -0 become what torch's function makes of them.
    :func:`ilm_plugins.surgery.fuse_activations` sets it for the activations of a model.

    Args:
        name: of torch's function: "relu", "relu6", "leaky_relu", "silu" or "hardswish".
        negative_slope: of "leaky_relu".
    """

    name: str
    negative_slope: float = 0.01

    def __call__(self, z: Tensor, inplace: bool = False) -> Tensor:
        function = FUNCTIONS[self.name][0]
        return function(z, *self._options(), inplace=inplace)

    def gradient(self, dy: Tensor, z: Tensor) -> Tensor:
        """Return the gradient of the input z."""
        return FUNCTIONS[self.name][1](dy, z, *self._options())

    def _options(self) -> tuple[float, ...]:
        return (self.negative_slope,) if self.name == "leaky_relu" else ()

    @property
    def is_known(self) -> bool:
        return self.name in FUNCTIONS and isinstance(self.negative_slope, float | int)

    @property
    def number(self) -> int:
        """Its place among the MapActivations of the kernels in C++."""
        return 1 + [*FUNCTIONS].index(self.name)


#: Name -> function, and the gradient of its input from dy and the input.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu": (functional.relu, lambda dy, z: _aten.threshold_backward(dy, z, 0)),
    "relu6": (functional.relu6, lambda dy, z: _aten.hardtanh_backward(dy, z, 0, 6)),
    "leaky_relu": (
        functional.leaky_relu,
        lambda dy, z, slope: _aten.leaky_relu_backward(dy, z, slope, False),
    ),
    "silu": (functional.silu, _aten.silu_backward),
    "hardswish": (functional.hardswish, _aten.hardswish_backward),
}
