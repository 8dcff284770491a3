"""A network alone, between passes over the map that a compiler writes.

In a model compiled for CUDA, torch.compile fuses the affine map with what follows it, so the passes
are operations of torch there, and only the network is a kernel. See engine/operators.py.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..network import Network, Tensors, check_tensors
from .devices import on_device
from .launch import Launch, current_stream
from .sizes import find_sizes, pointers_to, rescale_of
from .vectors import load, numbers


@triton.jit
def network_kernel(
    mean_ptr, var_ptr, scale_ptr, shift_ptr, t, RESCALE: tl.constexpr, SIZES: tl.constexpr
):
    """Compute the scale of x - mean and the shift (N, C) from the moments (N, G')."""
    n = tl.program_id(0).to(tl.int64)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    mean = load(mean_ptr + n * SIZES.fine, group, is_group)
    var = load(var_ptr + n * SIZES.fine, group, is_group)
    scale, shift = RESCALE(mean, var, t, SIZES)
    tl.store(scale_ptr + n * SIZES.channels + c, scale, mask=is_channel)
    tl.store(shift_ptr + n * SIZES.channels + c, shift, mask=is_channel)


@triton.jit
def network_vjp_kernel(
    d_scale_ptr, d_shift_ptr, mean_ptr, var_ptr, d_mean_ptr, d_var_ptr, rows_ptr, t,
    RESCALE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the moments, and each instance's row of gradients of the tensors.

    The mean's gradient includes the path through x - mean.
    """
    n = tl.program_id(0).to(tl.int64)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    d_scale = load(d_scale_ptr + n * SIZES.channels, c, is_channel)
    d_shift = load(d_shift_ptr + n * SIZES.channels, c, is_channel)
    mean = load(mean_ptr + n * SIZES.fine, group, is_group)
    var = load(var_ptr + n * SIZES.fine, group, is_group)
    rows_ptr += n * SIZES.gradients
    _, d_mean, d_var = RESCALE(mean, var, t, SIZES, d_scale, d_shift, rows_ptr)
    tl.store(d_mean_ptr + n * SIZES.fine + group, d_mean, mask=is_group)
    tl.store(d_var_ptr + n * SIZES.fine + group, d_var, mask=is_group)


# ---- host


class NetworkLaunches:
    """The checks and launches for N instances of a network with C channels and G' fine groups.

    ``dtypes`` are those of the network's tensors; Triton compiles a kernel for each.
    """

    def __init__(
        self, network: Network, channels: int, fine: int, n: int, device: torch.device, *dtypes
    ) -> None:
        self.network, self.channels = network, channels
        sizes = find_sizes(network, channels, fine)
        assert sizes is not None
        self.sizes, self.pointers = sizes, pointers_to(type(network))  # type: ignore[arg-type]
        numbers = network.sizes(channels)
        self.numbers = [numbers[name] for name in network.tensors]
        self.index = -1 if device.index is None else device.index
        rescale = rescale_of(network)
        named, options = {"RESCALE": rescale.function, "SIZES": sizes}, rescale.options(sizes)
        self.forward = Launch(network_kernel, n, named, **options)
        self.backward = Launch(network_vjp_kernel, n, named, **options)

    def pointers_of(self, mean: Tensor, tensors: Tensors) -> tuple:
        """Return what the kernels take for the network's tensors, copied where they must be."""
        for t, number in zip(tensors, self.numbers, strict=True):
            if (
                t is None
                or t.numel() != number
                or t.get_device() != self.index
                or t.data_ptr() & 15
                or not t.is_contiguous()
            ):
                check_tensors(mean.new_empty((0, self.channels)), self.network, tensors)
                return self.pointers(*(t if t is None else _ready(t) for t in tensors), None)
        return self.pointers(*tensors, None)


_launches = functools.lru_cache(maxsize=4096, typed=True)(NetworkLaunches)


def _find_launches(
    mean: Tensor, channels: int, network: Network, tensors: Tensors
) -> NetworkLaunches:
    n, fine = mean.shape
    dtypes = [None if t is None else t.dtype for t in tensors]
    return _launches(network, channels, fine, n, mean.device, *dtypes)


@on_device
def forward(
    mean: Tensor, var: Tensor, channels: int, network: Network, tensors: Tensors
) -> tuple[Tensor, Tensor]:
    """Return the scale of x - mean and the shift (N, C).

    Args:
        mean, var: the moments (N, G') of x, in float32.
        channels: C.
        network: the layer's description.
        tensors: the network's, also BN's statistics of the batch, as vectors.
    """
    launches = _find_launches(mean, channels, network, tensors)
    pointers, size = launches.pointers_of(mean, tensors), (mean.shape[0], channels)
    scale, shift = mean.new_empty(size), mean.new_empty(size)
    stream = current_stream(launches.index)
    launches.forward(stream, _ready(mean), _ready(var), scale, shift, pointers)
    return scale, shift


@on_device
def backward(
    d_scale: Tensor, d_shift: Tensor, mean: Tensor, var: Tensor, network: Network, tensors: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean and var, see the kernel, and of the tensors, a row (N, *) each.

    A row has the parameters' gradients, in the order and with the sizes of ``gradient_sizes``, then
    those of BN's mean and variance, if the network mixes them.
    """
    launches = _find_launches(mean, d_scale.shape[1], network, tensors)
    pointers = launches.pointers_of(mean, tensors)
    d_scale, d_shift, mean, var = map(_ready, (d_scale, d_shift, mean, var))
    d_mean, d_var = torch.empty_like(mean), torch.empty_like(var)
    rows = mean.new_empty((mean.shape[0], launches.sizes.gradients))
    stream = current_stream(launches.index)
    launches.backward(stream, d_scale, d_shift, mean, var, d_mean, d_var, rows, pointers)
    return d_mean, d_var, rows


def _ready(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy, contiguous and aligned to 16 bytes."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() & 15 else tensor
