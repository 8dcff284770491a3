"""The description of a network for a kernel: compile-time sizes, pointers, and what it stores."""

import functools
from collections import namedtuple
from typing import Any, NamedTuple

from .. import networks
from ..networks import Autoencoder, Exemplar, Network
from .devices import padded

#: Most channels of a program's vectors; most elements of a matrix of EN, with padding.
MAX_CHANNELS, MAX_MATRIX = 4096, 4096
#: Most channels of an auto-encoder if their number is odd. The vectors of more would not fit into
#: the registers, because the elements of unaligned rows are loaded one by one.
MAX_ODD_CHANNELS = 2048

#: Kind of network -> its tensors by name, as a kernel gets pointers to them. Where a buffer's
#: pointer is None, the kernel finds the buffer among the ``kept`` values, at ``Sizes.at``.
POINTERS = {n: namedtuple(f"{n.__name__}Tensors", (*n.tensors, "kept")) for n in Network.__args__}


class Sizes(NamedTuple):
    """The compile-time constants that describe a network."""

    network: Network
    kind: str  #: name of the network's class
    channels: int
    fine: int  #: groups whose moments the network takes
    buffers: tuple[tuple[int, int, int], ...]  #: place, offset among the kept, and size of each
    at: Any  #: offset of each buffer among the kept values, by name
    kept: int  #: values of all buffers
    gradients: int  #: values that a kernel stores of each instance's gradients
    #: Offset and size of each parameter's gradient in these, and how many copies the parameter has.
    parameters: tuple[tuple[int, int, int], ...]


def find_sizes(network: Network, channels: int, num_groups: int) -> Sizes | None:
    """Return the sizes for the kernels, or None if they cannot compute the network."""
    # A new momentum compiles nothing, because kernels take the number itself.
    fixed: dict[str, Any] = {"momentum": 0.0} if hasattr(network, "momentum") else {}
    return _find_sizes(network._replace(eps=float(network.eps), **fixed), channels, num_groups)


@functools.lru_cache(maxsize=None, typed=True)  # named tuples of two classes may be equal
def _find_sizes(network: Network, channels: int, num_groups: int) -> Sizes | None:
    networks.check_groups(network, channels, num_groups)
    normalizers = getattr(network, "normalizers", ())
    is_large = channels > MAX_CHANNELS
    if isinstance(network, Autoencoder):
        is_large |= channels > MAX_ODD_CHANNELS and channels % 2 == 1
    if isinstance(network, Exemplar):
        matrix = padded(network.hidden) * padded(len(normalizers))
        is_large |= matrix > MAX_MATRIX or network.ratio_net == "mlp"
    if is_large:
        return None
    first, sizes = network.num_parameters, network.sizes(channels)
    parameters, gradients = [], 0
    for name, size in zip(network.tensors[:first], sizes, strict=False):
        # All rows of EN's bias have the same gradient, which an instance's gradients have once.
        stored = channels if name == "bias" else size
        parameters.append((gradients, stored, size // stored))
        gradients += stored
    if "BN" in normalizers:
        gradients += 2 * channels  # of the batch's moments
    buffers, kept = [], 0
    for place, size in enumerate(sizes[first:], first):
        buffers.append((place, kept, size))
        kept += size
    names = network.tensors[first:]
    offsets = namedtuple("Offsets", names)  # type: ignore[misc]
    return Sizes(
        network=network,
        kind=type(network).__name__,
        channels=channels,
        fine=num_groups,
        buffers=tuple(buffers),
        at=offsets(*(offset for _, offset, _ in buffers)),
        kept=kept,
        gradients=gradients,
        parameters=tuple(parameters),
    )
