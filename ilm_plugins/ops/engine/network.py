"""What kernels are told of a network: its options, and its tensors by name."""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

#: A network's tensors, in the order of its description; None for a tensor that it lacks.
Tensors = Sequence[Tensor | None]
#: For each input of a function, whether its gradient is needed.
Needs = Sequence[bool]

#: Names of BN's running mean and variance, which are None where BN takes the batch's own moments.
BATCH = "running_mean", "running_variance"


class Network:
    """The description of a layer's function ``rescale``, from moments to scale and shift.

    A kind of network is a subclass, which is also a named tuple of the options: the attributes of
    the layer with the same names. Each kind has a folder in ``ops/networks``. Its tensors have the
    names by which a layer's state dict stores them, with ``_`` in place of ``.`` in code.
    """

    __slots__ = ()
    #: Names of the tensors with gradients (parameters) and without (buffers), in the order of
    #: the arguments of ``rescale``: NAME, CHILD.weight or CHILD.bias.
    parameters: ClassVar[tuple[str, ...]]
    buffers: ClassVar[tuple[str, ...]] = ()
    num_parameters: ClassVar[int]
    #: The names of all tensors.
    tensors: ClassVar[tuple[str, ...]]
    #: (CHILD or "", NAME) of each tensor but BN's moments.
    places: ClassVar[Sequence[tuple[str, str]]]
    #: The class of a named tuple of all tensors.
    named: ClassVar[Callable[..., Any]]
    #: Option whose values are names -> the names, in the order of the enum in cpu.hpp.
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    #: Class name -> class, of the networks that kernels compute, in the order of networks.hpp.
    by_name: ClassVar[dict[str, type["Network"]]] = {}

    def __init_subclass__(cls) -> None:
        cls.num_parameters = len(cls.parameters)
        cls.tensors = (*cls.parameters, *cls.buffers)
        cls.places = tuple(n.rpartition(".")[::2] for n in cls.tensors if n not in BATCH)
        cls.named = namedtuple(f"{cls.__name__}Tensors", fields_of(cls.tensors))  # type: ignore

    @property
    def mixes_batch(self) -> bool:
        """Whether the batch's moments are the last tensors, which kernels compute if None."""
        return False

    @classmethod
    def has_kernels(cls) -> bool:
        """Return whether this is one of the networks that kernels compute, not a user's own."""
        return cls.by_name.get(cls.__name__) is cls

    @classmethod
    def of(cls, layer: Any) -> "Network":
        """Return the description of a layer."""
        return cls(*(getattr(layer, name) for name in cls._fields))  # type: ignore[attr-defined]

    def sizes(self, channels: int) -> dict[str, int]:
        """Return each tensor's number of values."""
        raise NotImplementedError

    def gradient_sizes(self, channels: int) -> dict[str, int]:
        """Return the size of each parameter's gradient, of one row if all rows have the same."""
        sizes = self.sizes(channels)
        return {name: sizes[name] for name in self.parameters}

    def coarse_groups(self, channels: int) -> tuple[int, ...]:
        """Return the numbers of groups that consist of the fine ones."""
        return channels, self.num_groups  # type: ignore[attr-defined]

    def check(self, channels: int, num_groups: int) -> None:
        """Raise RuntimeError if the options do not fit moments of ``num_groups`` fine groups."""
        if any(num_groups % groups for groups in self.coarse_groups(channels)):
            raise RuntimeError(
                f"num_groups={self.num_groups} does not fit a layer made for moments of "  # type: ignore
                f"{num_groups} groups; build a new layer instead of changing its options"
            )


def fields_of(names: Iterable[str]) -> list[str]:
    return [name.replace(".", "_") for name in names]


def with_none(values: Iterable, present: Sequence[bool]) -> list:
    """Return the values in the places that are present, and None in the others."""
    values = iter(values)
    return [next(values) if is_present else None for is_present in present]


def check_tensors(x: Tensor, network: Network, tensors: Tensors) -> None:
    """Raise RuntimeError if a tensor is missing, on another device than x, or of another size."""
    channels = x.shape[1]
    sizes = dict.fromkeys(BATCH, channels) | network.sizes(channels)
    for name, tensor in zip((*network.tensors, *BATCH), tensors, strict=False):
        if tensor is None:
            if name not in BATCH:
                raise RuntimeError(
                    f"{name!r} of {type(network).__name__} is None, but kernels read it; give a "
                    "tensor"
                )
        elif tensor.numel() != sizes[name] or tensor.device != x.device:
            raise RuntimeError(
                f"{name!r} of {type(network).__name__} has the shape {tuple(tensor.shape)} on "
                f"{tensor.device}, expected {sizes[name]} values on {x.device}"
            )
