"""The description of a network for a kernel: compile-time sizes, pointers, and what it stores."""

import functools
import importlib
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

from ..network import Network, fields_of
from .devices import padded

#: Most channels of a program's vectors.
MAX_CHANNELS = 4096


class Sizes(NamedTuple):
    """The compile-time constants that describe a network."""

    network: Network
    kind: str  #: name of the network's class
    channels: int
    fine: int  #: groups whose moments the network takes
    buffers: tuple[tuple[int, int, int], ...]  #: place, offset among the kept, and size of each
    at: Any  #: offset of each buffer among the kept values, by name
    kept: int  #: number of values in all buffers, with the count of BN's batch behind them
    gradients: int  #: values that a kernel stores of each instance's gradients
    to: Any  #: offset of each parameter's gradient in these, by name; of the batch's moments
    #: Offset and size of each parameter's gradient, and how many copies the parameter has.
    parameters: tuple[tuple[int, int, int], ...]


class Rescale(NamedTuple):
    """A kind of network in Triton, ``RESCALE`` of the ``triton.py`` in its folder.

    ``function`` computes scale and shift (channels) from the moments (fine) of an instance. Given
    the gradients of scale and shift, too, it returns the scale and the gradients of the moments,
    the mean's also through x - mean, and stores the tensors' gradients.
    """

    function: Callable
    #: Whether the function supports a network of C channels, at most :data:`MAX_CHANNELS`.
    computes: Callable[[Any, int], bool] = lambda network, channels: True
    #: Returns the length of the function's longest vector; by default C.
    longest: Callable[[Any, int], int] = lambda network, channels: channels
    #: Whether it takes few enough registers to hold a small instance of x at the same time.
    is_read_once: bool = False

    def options(self, sizes: Sizes) -> dict[str, int]:
        """Return how to launch a kernel that calls the function."""
        longest = padded(self.longest(sizes.network, sizes.channels))
        return {"num_warps": min(16, max(4, longest // 64)), "maxnreg": 128}


def rescale_of(network: Network) -> Rescale:
    folder = type(network).__module__.rpartition(".")[0]
    return importlib.import_module(f"{folder}.triton").RESCALE


@functools.cache
def pointers_to(kind: Any) -> Callable[..., tuple]:
    """Return the named tuple of pointers that a kernel gets for a kind of network, and ``kept``.

    Where a buffer's pointer is None, the kernel finds the buffer among the kept values.
    """
    return namedtuple(f"{kind.__name__}Pointers", (*fields_of(kind.tensors), "kept"))


def find_sizes(network: Any, channels: int, num_groups: int) -> Sizes | None:
    """Return the sizes for the kernels, or None if they cannot compute the network."""
    # A new momentum compiles nothing, because kernels take the number itself.
    fixed: dict[str, Any] = {"momentum": 0.0} if hasattr(network, "momentum") else {}
    return _find_sizes(network._replace(eps=float(network.eps), **fixed), channels, num_groups)


@functools.lru_cache(maxsize=None, typed=True)  # named tuples of two classes may be equal
def _find_sizes(network: Network, channels: int, num_groups: int) -> Sizes | None:
    if not network.has_kernels():
        return None
    network.check(channels, num_groups)
    if channels > MAX_CHANNELS or not rescale_of(network).computes(network, channels):
        return None
    sizes, of_gradients = network.sizes(channels), network.gradient_sizes(channels)
    parameters, gradients = [], 0
    for name in network.parameters:
        stored = of_gradients[name]
        parameters.append((gradients, stored, sizes[name] // stored))
        gradients += stored
    to: Any = namedtuple("To", (*fields_of(network.parameters), "batch"))  # type: ignore[misc]
    gradients_to = to._make([*(offset for offset, _, _ in parameters), gradients])
    if network.mixes_batch:
        gradients += 2 * channels
    buffers, kept = [], 0
    for place, name in enumerate(network.buffers, network.num_parameters):
        buffers.append((place, kept, sizes[name]))
        kept += sizes[name]
    at: Any = namedtuple("At", fields_of(network.buffers))  # type: ignore[misc]
    return Sizes(
        network=network,
        kind=type(network).__name__,
        channels=channels,
        fine=num_groups,
        buffers=tuple(buffers),
        at=at(*(offset for _, offset, _ in buffers)),
        kept=kept + network.mixes_batch,
        gradients=gradients,
        to=gradients_to,
        parameters=tuple(parameters),
    )
