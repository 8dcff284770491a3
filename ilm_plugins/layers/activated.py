"""A norm and the modules that run after it, or whose computation the norm does itself."""

from typing import Any, cast

from torch import nn
from torch.fx import Proxy, Tracer


class NormWithActivation(nn.Sequential):
    """A norm, then dropout and activation, in place of one of timm's norms that has both inside."""

    # Models of timm initialize them, as CSPNet does.

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self[0].weight)

    @property
    def bias(self) -> nn.Parameter:
        return cast(nn.Parameter, self[0].bias)


class FusedActivation(nn.Identity):
    """Stands in place of an activation that the norm before it applies.

    ``original`` is that activation, a module or a function.
    """

    original: Any

    def __init__(self, original: Any) -> None:
        super().__init__()
        vars(self)["original"] = original  # no submodule

    def forward(self, x: Any) -> Any:
        if isinstance(x, Proxy):  # torch.fx keeps the node, which feature extractors ask for
            tracer = cast(Tracer, x.tracer)
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})
        return x

    def extra_repr(self) -> str:
        return getattr(self.original, "__name__", repr(self.original))
