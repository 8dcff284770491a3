"""What all layers share: the forward pass, the check of its input, a linear map."""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..ops import Network, adaptive_norm


class AdaptiveNorm(nn.GroupNorm):
    """A normalization whose scale and shift are computed from moments.

    It derives from :class:`torch.nn.GroupNorm` because frameworks tell norms from other modules by
    that class, for weight decay and for initialization. A layer names it as its last base, too:
    MMEngine's initializers look no further than a class's own bases. ``weight`` and ``bias`` are
    the norm's own; every other parameter sits in a child module, and gets the ordinary weight
    decay. SN's few ratios are the exception: they get a norm's.

    A subclass says which moments it needs (``moment_groups``), what it makes of them (``rescale``),
    and which tensors that takes (``rescale_tensors``).
    """

    moment_groups: int
    #: A method that describes ``rescale`` for kernels that compute it themselves, or None.
    network: Callable[[], Network] | None = None

    def __new__(cls, *args, **options):
        # A config's misspelt option deserves better than Python's TypeError, in every framework.
        check_known(cls, options, args)
        return super().__new__(cls)

    def rescale(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, G') moments to (N, C) scale and shift of the standardized x.

        See :func:`ilm_plugins.ops.adaptive_norm`.
        """
        raise NotImplementedError

    def rescale_tensors(self) -> tuple[Tensor, ...]:
        """The parameters and buffers that ``rescale`` takes after the moments, in its order."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        # nn.GroupNorm's constructor calls this, too, before there is anything of a subclass.
        super().reset_parameters()
        for child in self.children():
            child.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, *), into a tensor of the same shape, dtype and memory layout.

        Raises:
            ValueError: x has fewer than two dimensions, another number of channels, or no floating
                point values.
        """
        self.check_input(x)
        return self.normalize(x)[0]

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized x, and its moments (N, moment_groups), detached: means and variances."""
        return adaptive_norm(
            x,
            self.moment_groups,
            self.eps,
            self.rescale,
            *self.rescale_tensors(),
            network=self.network,
        )

    def __prepare_scriptable__(self):
        # torch.jit.script asks for this; what it cannot compile, it tells in many lines.
        raise NotImplementedError(
            f"{type(self).__name__}: torch.jit.script cannot compile this layer; trace the model "
            "with torch.jit.trace(model, example), or use torch.export"
        )

    def check_input(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__}: got an input of shape {tuple(x.shape)}, expected "
                f"(N, {self.num_channels}, *); build the layer with num_channels equal to the "
                "input's second dimension"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: got an input of {x.dtype}, expected floating point; "
                "convert it with x.float()"
            )


class Projection(nn.Module):
    """A small linear map, (*, in_features) to (*, out_features).

    Not an nn.Linear on purpose: frameworks re-initialize, quantize or adapt every nn.Linear they
    find. And each row's result must not depend on the batch it comes in, which a matrix product
    does not promise: hence multiply and sum, which autocast leaves in float32, too. That takes
    memory for every product, (*, out_features, in_features).

    Args:
        init: "default" is that of nn.Linear, "normal" the standard normal distribution of the ILM
            paper (Section 4.1.1), "zeros" the start at which a map does nothing.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.init = in_features, out_features, init
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if self.init == "zeros":
                nn.init.zeros_(parameter)
            elif self.init == "normal":
                nn.init.normal_(parameter)
            else:
                bound = 1 / math.sqrt(self.in_features)
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(*, I) times weight (O, I), plus bias (O): (*, O)."""
    y = (x.unsqueeze(-2) * weight).sum(-1)
    return y if bias is None else y + bias


def sigmoid(x: Tensor) -> Tensor:
    """torch.sigmoid, whose last bit depends on where in a tensor, hence in a batch, a value is."""
    return torch.tanh(x * 0.5) * 0.5 + 0.5


ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": sigmoid,
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "relu6": nn.functional.relu6,
    "identity": lambda x: x,
}


def check_known(layer: type, options: Mapping[str, Any], args: Iterable[Any] = ()) -> None:
    """Raise OptionError unless a layer's constructor takes all of these options beside ``args``."""
    known = inspect.signature(layer.__init__).parameters
    for option, given in zip(list(known)[1:], args, strict=False):
        if option in options:
            raise OptionError(
                f"{layer.__name__}: {option}={options[option]!r}, but the model gives "
                f"{option}={given!r} itself; leave it out"
            )
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for option in options:
        if option not in known:
            raise OptionError(
                f"{layer.__name__}: unknown option {option!r}; the options are "
                + ", ".join(list(known)[1:])
            )


def check_choice(layer: str, option: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise OptionError unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise OptionError(
            f"{layer}: {option}={value!r} is unknown; set it to one of "
            + ", ".join(map(repr, choices))
        )


def check_divides(layer: str, num_channels: int, option: str, value: int) -> None:
    """Raise OptionError unless ``value`` is a positive integer that divides ``num_channels``."""
    check_positive(layer, "num_channels", num_channels)
    if _is_integer(value) and value >= 1 and num_channels % value == 0:
        return
    at_most = value if _is_integer(value) and value >= 1 else num_channels
    divisor = max(d for d in range(1, num_channels + 1) if num_channels % d == 0 and d <= at_most)
    raise OptionError(
        f"{layer}: {option}={value!r} does not divide num_channels={num_channels}; "
        f"set {option} to a divisor of {num_channels}, for example {option}={divisor}"
    )


def check_positive(layer: str, option: str, value: int) -> None:
    """Raise OptionError unless ``value`` is a positive integer."""
    if not _is_integer(value) or value < 1:
        raise OptionError(f"{layer}: {option}={value!r} is not a positive integer; set one")


def check_eps(layer: str, eps: float) -> None:
    """Raise OptionError unless ``eps`` is above 0, in float32 too, and 1 at most."""
    if not is_number(eps) or not torch.finfo(torch.float32).tiny <= eps <= 1:
        raise OptionError(
            f"{layer}: eps={eps!r} is not a number above 0 in float32, and 1 at most; "
            "set what is added to the variance, 1e-5 by default"
        )


def check_flag(layer: str, option: str, value: bool) -> None:
    """Raise OptionError unless ``value`` is a bool: a string would pass for True."""
    if not isinstance(value, bool):
        raise OptionError(f"{layer}: {option}={value!r} is unknown; set it to one of True, False")


def check_dtype(layer: str, dtype: torch.dtype | None) -> None:
    """Raise OptionError unless ``dtype`` is None or one of floating point numbers."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    raise OptionError(
        f"{layer}: dtype={dtype!r} is not a floating point torch.dtype; "
        "set one, for example torch.float32"
    )


def check_device(layer: str, device: torch.device | str | int | None) -> None:
    """Raise OptionError unless ``device`` is None or names a device of torch's."""
    try:
        if device is not None:
            torch.device(device)
    except (RuntimeError, TypeError):
        raise OptionError(
            f"{layer}: device={device!r} is not a torch.device; set one, for example 'cpu'"
        ) from None


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number; True and False, which Python counts as such, are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and is_number(value)
