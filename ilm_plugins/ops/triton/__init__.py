"""The primitive's forward and backward pass by Triton kernels, on CUDA.

For a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool -> rescale -> affine
    backward   sums of (channel, split of positions)    -> sum  -> vjp     -> dx

Between the passes over x runs a torch function, or, for an auto-encoder or a mixture of
normalizers, one kernel with a program for each instance. BN's statistics of the batch take one more
kernel each way. With an auto-encoder, an instance that fits into the registers of one program, such
as a detector's box head, is read once: the *one-read* kernels do all steps in one program.

Contiguous and channels-last maps are read and written without a copy. The host never waits for the
device, and the order of additions is the same in each run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layouts import dense, laid_out
from ..networks import Network, Tensors, check_tensors
from . import mixture, one_read, rescaling, streaming
from .devices import INTERPRETED, has_bfloat16, new, on_device
from .sizes import POINTERS, Sizes, find_sizes, split_gradients


def supports(x: Tensor) -> bool:
    """Return whether the kernels take x's device, dtype and size."""
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and (x.dtype != torch.bfloat16 or has_bfloat16(x.device))
        and x.shape[2:].numel() < 2**30
    )


# ---- the functions of every backend, see ops/plain.py


@on_device
def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    return streaming.moments(dense(x), num_groups)


@on_device
def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return streaming.affine(dense(x), mean, scale, shift)


@on_device
def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return streaming.sums(laid_out(dy, x), x, mean)


@on_device
def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    x = dense(x)
    return streaming.dx(laid_out(dy, x), x, mean, scale, slope, offset)


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    return find_sizes(network, x.shape[1], num_groups) is not None


@on_device
def forward(
    x: Tensor, num_groups: int, network: Network, tensors: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    check_tensors(x, network.sizes(x.shape[1]), tensors)
    x, sizes = dense(x), find_sizes(network, x.shape[1], num_groups)
    if shape := one_read.shape_for(x, sizes):
        return one_read.forward(x, _pointers(network, tensors), shape, sizes)
    mean, var = streaming.moments(x, num_groups)
    scale, shift = new(x, 2, x.shape[1])
    pointers = _pointers(network, tensors, mean, var)
    _launch(rescaling.rescale_kernel, (mean, var, scale, shift), pointers, sizes)
    return streaming.affine(x, mean, scale, shift), mean, var


@on_device
def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Network,
    tensors: Tensors,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    x = dense(x)
    dy, c, num_groups = laid_out(dy, x), x.shape[1], mean.shape[1]
    sizes = find_sizes(network, c, num_groups)
    (gradients,) = new(x, 1, sizes.gradients)
    shape, d_x = one_read.shape_for(x, sizes), None
    if shape:
        pointers = _pointers(network, tensors)
        d_x = one_read.backward(dy, x, mean, var, gradients, pointers, shape, sizes)
    else:
        pointers = _pointers(network, tensors, mean, var)
        (scale,), (slope, offset) = new(x, 1, c), new(x, 2, num_groups)
        values = *streaming.sums(dy, x, mean), mean, var, scale, slope, offset, gradients
        count = float(x[0].numel() // num_groups)
        _launch(rescaling.rescale_vjp_kernel, values, pointers, sizes, count)
    total = gradients.sum(0) if len(gradients) > 1 else gradients[0]
    if needs[0] and not shape:
        if _uses_batch_moments(network, tensors):
            d_batch = total[-2 * c :]
            mixture.couple(slope, offset, mean, pointers.batch_mean, d_batch, len(x) * count)
        d_x = streaming.dx(dy, x, mean, scale, slope, offset)
    return d_x if needs[0] else None, *split_gradients(total, network, tensors)


def _uses_batch_moments(network: Network, tensors: Tensors) -> bool:
    return "BN" in getattr(network, "normalizers", ()) and tensors[-1] is None


def _pointers(network: Network, tensors: Tensors, *moments: Tensor) -> tuple:
    """Return a network's tensors by name, the batch's moments from (N, C) ones if they are used."""
    tensors = [t if t is None else t.detach().contiguous() for t in tensors]
    if _uses_batch_moments(network, tensors):
        tensors[-2:] = mixture.pool_batch(*moments)
    return POINTERS[type(network)](*tensors)


def _launch(kernel, values: Sequence[Tensor], pointers: tuple, sizes: Sizes, *count: float) -> None:
    """Launch a kernel of ``rescaling``, with one program for each instance."""
    elements = max(sizes.padded_channels, sizes.padded_hidden * sizes.rows // 2)
    warps = min(16, max(4, elements // 256))
    kernel[(len(values[0]),)](*values, pointers, *count, sizes, num_warps=warps)
