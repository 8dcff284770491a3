"""The primitive's forward and backward pass by Triton kernels, on CUDA.

For a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool -> rescale -> affine
    backward   sums of (channel, split of positions)    -> sum  -> vjp     -> dx

Between the passes over x runs one kernel with a program for each instance, or a torch function for
a network that the kernels lack. One more kernel forward pools BN's statistics of the batch, and
updates the running statistics. With an auto-encoder, an instance that fits into the registers of
one program, such as a detector's box head, is read once: the *one-read* kernels do all in one
program.

Contiguous and channels-last maps are read and written without a copy. The host never waits for the
device, and the order of additions is the same in each run.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..networks import (
    Exemplar,
    Network,
    Switch,
    Tensors,
    check_tensors,
    split_statistics,
    write_back,
)
from . import mixture, one_read, rescaling, streaming
from .devices import INTERPRETED, has_bfloat16, new, on_device, padded
from .sizes import POINTERS, Sizes, find_sizes, split_gradients


def supports(x: Tensor) -> bool:
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and (x.dtype != torch.bfloat16 or has_bfloat16(x.device))
        and x.shape[2:].numel() < 2**30
    )


# ---- the functions of every backend, see ops/plain.py


@on_device
def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    mean, var = new(x, 2, num_groups)
    streaming.moments(x, (mean, var))
    return mean, var


affine = on_device(streaming.affine)
sums = on_device(streaming.sums)
dx = on_device(streaming.dx)


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    return find_sizes(network, x.shape[1], num_groups) is not None


@on_device
def forward(x, num_groups, network: Network, tensors: Tensors, running: Tensors):
    n, c = x.shape[:2]
    check_tensors(x, network, (*tensors, *running))
    sizes = find_sizes(network, c, num_groups)
    statistics = x.new_empty(2 * n * num_groups + sizes.kept, dtype=torch.float32)
    mean, var, *kept = split_statistics(statistics, network, x, num_groups)
    tensors = [t if t is None else t.contiguous() for t in tensors]
    shape = one_read.shape_for((x,), sizes)
    if shape is None:
        streaming.moments(x, (mean, var))
    if _uses_batch_moments(network, tensors):
        tensors[-2:] = kept[-2:]
        updated = [t.contiguous() for t in running]
        mixture.pool_batch(mean, var, kept[-2:], updated, network.momentum, x.numel() // c)
        write_back(updated, running)
    pointers = POINTERS[type(network)](*tensors)
    if shape is not None:
        y = torch.empty_like(x)
        values = x, y, statistics, n * num_groups
        one_read.launch(one_read.one_read_kernel, values, pointers, shape, sizes)
        return y, statistics
    scale, shift = new(x, 2, c)
    values = scale, shift, statistics, n * num_groups
    _launch(rescaling.rescale_kernel, values, pointers, sizes)
    return streaming.affine(x, mean, scale, shift), statistics


@on_device
def backward(dy, x, num_groups, statistics, network: Network, tensors: Tensors, needs):
    c = x.shape[1]
    sizes = find_sizes(network, c, num_groups)
    mean, var, *buffers = split_statistics(statistics, network, x, num_groups)
    parameters = [t if t is None else t.contiguous() for t in tensors[: network.num_parameters]]
    pointers = POINTERS[type(network)](*parameters, *buffers)
    (gradients,) = new(x, 1, sizes.gradients)
    shape, d_x = one_read.shape_for((dy, x), sizes), None
    values: tuple[Any, ...]
    if shape:
        d_x = torch.empty_like(x)
        values = dy, x, d_x, mean, var, gradients
        one_read.launch(one_read.one_read_vjp_kernel, values, pointers, shape, sizes)
    else:
        (scale,), (slope, offset) = new(x, 1, c), new(x, 2, num_groups)
        values = *streaming.sums(dy, x, mean), mean, var, scale, slope, offset, gradients
        count = float(x[0].numel() // num_groups)
        _launch(rescaling.rescale_vjp_kernel, values, pointers, sizes, count)
    total = gradients.sum(0) if len(gradients) > 1 else gradients[0]
    if needs[0] and not shape:
        batch: tuple = ()
        if _uses_batch_moments(network, tensors):
            batch = buffers[-2], total[-2 * c :], x.numel() / c
        d_x = streaming.dx(dy, x, mean, scale, slope, offset, *batch)
    return d_x if needs[0] else None, *split_gradients(total, network, tensors)


def _uses_batch_moments(network: Network, tensors: Tensors) -> TypeGuard[Exemplar | Switch]:
    if not isinstance(network, Exemplar | Switch):
        return False
    return "BN" in network.normalizers and tensors[-1] is None


def _launch(kernel, values: Sequence, pointers, sizes: Sizes, *count: float) -> None:
    """Launch a kernel of ``rescaling``, with one program for each instance."""
    hidden = sizes.network.hidden if isinstance(sizes.network, Exemplar) else 0
    warps = min(16, max(4, padded(max(sizes.channels, hidden)) // 64))
    network = rescaling.NETWORKS[sizes.kind]
    kernel[(len(values[0]),)](
        *values, pointers, *count, network, sizes, num_warps=warps, maxnreg=128
    )
