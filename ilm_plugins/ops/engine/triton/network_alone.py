"""A network alone, between passes over the map that a compiler writes.

In a model compiled for CUDA, torch.compile fuses the affine map with what follows it, so the passes
are operations of torch there, and only the network is a kernel. See engine/operators.py.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..network import BATCH, Network, Tensors, check_tensors
from .devices import divide_up, on_device
from .launch import Launch, current_stream
from .plan import GROUPS, MEMBERS
from .programs import sum_gradients
from .sizes import Sizes, find_sizes, pointers_to, rescale_of
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


@triton.jit(do_not_specialize=["members"])
def network_vjp_kernel(
    d_scale_ptr, d_shift_ptr, mean_ptr, var_ptr, d_mean_ptr, d_var_ptr, work_ptr, counters_ptr, t,
    gradients, members, RESCALE: tl.constexpr, SIZES: tl.constexpr, PARAMETERS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the moments and of the tensors.

    The mean's gradient includes the path through x - mean.
    """
    n = tl.program_id(0).to(tl.int64)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    d_scale = load(d_scale_ptr + n * SIZES.channels, c, is_channel)
    d_shift = load(d_shift_ptr + n * SIZES.channels, c, is_channel)
    mean = load(mean_ptr + n * SIZES.fine, group, is_group)
    var = load(var_ptr + n * SIZES.fine, group, is_group)
    row_ptr = work_ptr + n * SIZES.gradients
    _, d_mean, d_var = RESCALE(mean, var, t, SIZES, d_scale, d_shift, row_ptr)
    tl.store(d_mean_ptr + n * SIZES.fine + group, d_mean, mask=is_group)
    tl.store(d_var_ptr + n * SIZES.fine + group, d_var, mask=is_group)
    sum_gradients(n, members, work_ptr, counters_ptr, gradients, SIZES.gradients, PARAMETERS)


# ---- host


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
    sizes, pointers = _prepare(mean, channels, network, tensors)
    scale, shift = (mean.new_empty((len(mean), sizes.channels)) for _ in range(2))
    mean, var = _ready(mean), _ready(var)
    launch = _forward_launch(sizes, len(mean), mean.device, *_dtypes(tensors))
    launch(current_stream(_index(mean)), mean, var, scale, shift, pointers)
    return scale, shift


@on_device
def backward(
    d_scale: Tensor, d_shift: Tensor, mean: Tensor, var: Tensor, network: Network, tensors: Tensors,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:  # fmt: skip
    """Return the gradients of mean and var, see the kernel, and of each tensor or None."""
    sizes, pointers = _prepare(mean, d_scale.shape[1], network, tensors)
    n, first = len(mean), network.num_parameters
    d_scale, d_shift, mean, var = map(_ready, (d_scale, d_shift, mean, var))
    d_mean, d_var = torch.empty_like(mean), torch.empty_like(var)
    members = max(MEMBERS, divide_up(n, GROUPS))
    work = mean.new_empty((n + divide_up(n, members)) * sizes.gradients)
    gradients = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else None
        for t, need in zip(tensors, needs, strict=True)
    ]
    of_tensors = sizes.parameters
    places = [*range(first)]
    if network.mixes_batch:
        at, c = sizes.to.batch, sizes.channels
        of_tensors += (at, c, 1), (at + c, c, 1)
        places += map(network.tensors.index, BATCH)
    # Not counters that are kept: a pool of CUDA graphs would take their memory again.
    counts = mean.new_zeros(1 + divide_up(n, members), dtype=torch.int32)
    dtypes = mean.device, *needs, *_dtypes(tensors)
    launch = _backward_launch(sizes, n, members, of_tensors, *dtypes)
    launch(
        current_stream(_index(mean)), d_scale, d_shift, mean, var, d_mean, d_var, work, counts,
        pointers, tuple(gradients[i] for i in places),
    )  # fmt: skip
    return d_mean, d_var, gradients


def _prepare(mean: Tensor, channels: int, network: Network, tensors: Tensors):
    sizes = find_sizes(network, channels, mean.shape[1])
    check_tensors(mean.new_empty((0, channels)), network, tensors)
    ready = [t if t is None else _ready(t) for t in tensors]
    return sizes, pointers_to(network)(*ready, None)


def _ready(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy, contiguous and aligned to 16 bytes."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() & 15 else tensor


def _index(mean: Tensor) -> int:
    return -1 if mean.device.index is None else mean.device.index


def _dtypes(tensors: Tensors) -> tuple[torch.dtype | None, ...]:
    return tuple(None if t is None else t.dtype for t in tensors)


@functools.lru_cache(maxsize=4096)
def _forward_launch(sizes: Sizes, n: int, device: torch.device, *dtypes) -> Launch:
    rescale = rescale_of(sizes.network)
    return Launch(network_kernel, n, (rescale.function, sizes), **rescale.options(sizes))


@functools.lru_cache(maxsize=4096)
def _backward_launch(sizes: Sizes, n: int, members: int, of_tensors, *dtypes) -> Launch:
    rescale = rescale_of(sizes.network)
    arguments = members, rescale.function, sizes, of_tensors
    return Launch(network_vjp_kernel, n, arguments, **rescale.options(sizes))
