"""The linear maps and activations of the layers' small networks."""

import math

import torch
from torch import Tensor, nn

from .children import Child


# It is not an nn.Linear, because frameworks re-initialize, quantize or adapt every nn.Linear they
# find.
class Projection(Child):
    """The weight (out, in) and the bias of a small linear map, which :func:`project` computes.

    ``init`` is "default" (as nn.Linear) or "zeros".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        init: str = "default",
        **factory,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.init = in_features, out_features, init
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        values = nn.Parameter(torch.empty(out_features, **factory)) if bias else None
        self.register_parameter("bias", values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if self.init == "zeros":
                nn.init.zeros_(parameter)
            else:
                bound = 1 / math.sqrt(self.in_features)
                nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the linear map of x (*, I) by weight (O, I) and bias (O) or None: (*, O)."""
    # Compiled, the gradient of a product and a sum would be a sum over the batch, by which the CPU
    # code of TorchInductor writes past its buffer unless O is a multiple of the vector width
    # (PyTorch issue 196681). No setting makes a product in float64 less precise.
    is_exporting = getattr(torch.compiler, "_is_exporting_flag", False)  # from torch 2.7 on
    is_compiling = torch.compiler.is_dynamo_compiling() and not is_exporting
    if weight.dim() == 2 and x.device.type == "cpu" and is_compiling:
        shift = None if bias is None else bias.double()
        y = nn.functional.linear(x.double(), weight.double(), shift)
        return y.to(torch.promote_types(x.dtype, weight.dtype))
    # No matrix product: its result for a row depends on the rest of the batch, and autocast would
    # not compute it in float32.
    # OpenVINO's CPU plugin computes a wrong result where a bias directly follows the sum.
    y = (x.unsqueeze(-2) * weight).sum(-1, keepdim=True).squeeze(-1)
    return y if bias is None else y + bias


def sigmoid(x: Tensor) -> Tensor:
    # The last bit of torch.sigmoid depends on a value's position in the tensor, hence in the batch.
    return torch.tanh(x * 0.5) * 0.5 + 0.5


#: Name of an activation in a layer's options -> function.
ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": sigmoid,
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "relu6": nn.functional.relu6,
    "identity": lambda x: x,
}
