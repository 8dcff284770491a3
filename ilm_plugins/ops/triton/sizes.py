"""The description of a network for a kernel: compile-time sizes, pointers, and what it stores."""

import functools
from collections import namedtuple
from typing import NamedTuple

import triton
from torch import Tensor

from .. import networks
from ..networks import Autoencoder, Exemplar, Network, Switch, Tensors

#: Most channels of a program's vectors; most elements of a program's matrices, with padding.
MAX_CHANNELS = 4096
MAX_AUTOENCODER, MAX_MIXTURE = 16384, 4096

#: Kind of network -> its tensors by name, as a kernel gets pointers to them.
POINTERS = {
    kind: namedtuple(f"{kind.__name__}Tensors", names)
    for kind, names in {
        Autoencoder: "weight bias encode decode_mean decode_var omega_offset",
        Exemplar: "weight bias reduce expand expand_bias ratio ratio_bias batch_mean batch_var",
        Switch: "weight bias mean_weight var_weight batch_mean batch_var",
    }.items()
}


class Sizes(NamedTuple):
    """The compile-time constants that describe a network."""

    network: Network
    kind: str  #: name of the network's class
    channels: int
    padded_channels: int
    fine: int  #: groups whose moments the network takes
    padded_fine: int
    padded_hidden: int  #: 1 for SN
    rows: int  #: an auto-encoder's key groups; a mixture's normalizers, padded
    gradients: int  #: values that a kernel stores of each instance's gradients


@functools.lru_cache(maxsize=None, typed=True)  # named tuples of two classes may be equal
def find_sizes(network: Network, channels: int, num_groups: int) -> Sizes | None:
    """Return the sizes for the kernels, or None if they cannot compute the network."""
    networks.check_groups(network, channels, num_groups)
    if type(network) not in POINTERS:
        return None
    padded_hidden = triton.next_power_of_2(getattr(network, "hidden", 1))
    gradients = sum(gradient_sizes(network, channels))
    if isinstance(network, Autoencoder):
        rows, max_matrix = network.num_key_groups, MAX_AUTOENCODER
        computes = (
            _are_powers_of_2(channels, num_groups, network.num_groups, rows)
            and set(network.activations) <= set(networks.ACTIVATIONS)
            and network.combine in networks.COMBINE
        )
    else:
        rows, max_matrix = triton.next_power_of_2(len(network.normalizers)), MAX_MIXTURE
        computes = "GN" not in network.normalizers and (
            isinstance(network, Switch)
            or (network.ratio_net == "conv" and _are_powers_of_2(network.reduction))
        )
        if "BN" in network.normalizers:
            gradients += 2 * channels  # of the batch's moments
    if not computes or padded_hidden * rows > max_matrix or channels > MAX_CHANNELS:
        return None
    return Sizes(
        network=network._replace(eps=float(network.eps)),
        kind=type(network).__name__,
        channels=channels,
        padded_channels=triton.next_power_of_2(channels),
        fine=num_groups,
        padded_fine=triton.next_power_of_2(num_groups),
        padded_hidden=padded_hidden,
        rows=rows,
        gradients=gradients,
    )


def _are_powers_of_2(*sizes: int) -> bool:
    return not any(size & (size - 1) for size in sizes)


def gradient_sizes(network: Network, channels: int) -> list[int]:
    """Return the number of stored values of each parameter's gradient; EN's biases share one."""
    sizes = list(network.sizes(channels)[: network.num_parameters])
    sizes[1] = channels
    return sizes


def split_gradients(total: Tensor, network: Network, tensors: Tensors) -> list[Tensor | None]:
    """Return the gradient of each of a network's tensors, None for a buffer."""
    sizes = gradient_sizes(network, tensors[0].shape[-1])
    weight, bias, *others = total[: sum(sizes)].split(sizes)
    others = (d.view_as(t) for d, t in zip(others, tensors[2:], strict=False))
    buffers = [None] * (len(tensors) - len(sizes))
    return [weight.view_as(tensors[0]), bias.expand_as(tensors[1]), *others, *buffers]
