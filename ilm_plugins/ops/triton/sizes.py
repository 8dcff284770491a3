"""The description of a network for a kernel: compile-time sizes, pointers, and what it stores."""

import functools
from collections import namedtuple
from typing import Any, NamedTuple

from torch import Tensor

from .. import networks
from ..networks import Autoencoder, Exemplar, Network, Tensors
from .devices import padded

#: Most channels of a program's vectors; most elements of a matrix of EN, with padding.
MAX_CHANNELS, MAX_MATRIX = 4096, 4096
#: Most channels of an auto-encoder if their number is odd. The vectors of more would not fit into
#: the registers, because the elements of unaligned rows are loaded one by one.
MAX_ODD_CHANNELS = 2048

#: Kind of network -> its tensors by name, as a kernel gets pointers to them.
POINTERS = {n: namedtuple(f"{n.__name__}Tensors", n.tensors) for n in Network.__args__}


class Sizes(NamedTuple):
    """The compile-time constants that describe a network."""

    network: Network
    kind: str  #: name of the network's class
    channels: int
    fine: int  #: groups whose moments the network takes
    buffers: tuple[tuple[int, int, int], ...]  #: place, offset among all buffers, and size of each
    kept: int  #: values of all buffers
    gradients: int  #: values that a kernel stores of each instance's gradients


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
    gradients = sum(gradient_sizes(network, channels))
    if "BN" in normalizers:
        gradients += 2 * channels  # of the batch's moments
    buffers, kept, first = [], 0, network.num_parameters
    for place, size in enumerate(network.sizes(channels)[first:], first):
        buffers.append((place, kept, size))
        kept += size
    return Sizes(
        network=network,
        kind=type(network).__name__,
        channels=channels,
        fine=num_groups,
        buffers=tuple(buffers),
        kept=kept,
        gradients=gradients,
    )


def gradient_sizes(network: Network, channels: int) -> list[int]:
    """Return the number of stored values of each parameter's gradient; EN's biases share one."""
    sizes = list(network.sizes(channels)[: network.num_parameters])
    sizes[1] = channels
    return sizes


def split_gradients(total: Tensor, network: Network, tensors: Tensors) -> list[Tensor | None]:
    """Return the gradient of each of a network's tensors, None for a buffer."""
    sizes = gradient_sizes(network, tensors[0].shape[-1])
    weight, bias, *others = total[: sum(sizes)].split(sizes)
    others = (t if t is None else d.view_as(t) for d, t in zip(others, tensors[2:], strict=False))
    buffers = [None] * (len(tensors) - len(sizes))
    return [weight.view_as(tensors[0]), bias.expand_as(tensors[1]), *others, *buffers]
