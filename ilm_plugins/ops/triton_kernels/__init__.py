"""The primitive's forward and backward pass by Triton kernels, on CUDA.

Of a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool -> rescale -> affine
    backward   sums of (channel, split of positions)    -> sum  -> vjp     -> dx

What lies between is a function of torch, or, for an auto-encoder and for a mixture of normalizers,
one kernel with one program for each instance. Under an auto-encoder, an instance that fits into one
program's registers, a detector's box head's, is read once: the *one-read* kernels do all of the
above for it.

Both layouts, contiguous and channels last, are read and written as they are. Nothing waits for the
device, and nothing is added in an order that changes from run to run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import Autoencoder, Mixture, Network
from ..layouts import dense
from ..moments import duplicate
from . import autoencoder, mixture, streaming
from .launching import INTERPRETED, check_devices, on_device
from .streaming import affine, centered_sums, laid_out, moments

#: Who runs which network.
MODULES = {Autoencoder: autoencoder, Mixture: mixture}


def supports(x: Tensor) -> bool:
    """Whether the kernels take x: its device, its dtype, its size."""
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.shape[2:].numel() < 2**30
    )


@on_device
def forward(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~..kernels.Kernels`."""
    x = dense(x)
    mean, var = moments(x, num_groups)
    scale, shift = rescale(mean, var)
    return affine(x, mean, scale * duplicate((var + eps).rsqrt(), x.shape[1]), shift), mean, var


@on_device
def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`~..kernels.Kernels`."""
    x = dense(x)
    d_scale, d_shift = centered_sums(laid_out(dy, x), x, mean)
    return d_scale * duplicate(rstd, x.shape[1]), d_shift


@on_device
def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """See :class:`~..kernels.Kernels`."""
    x = dense(x)
    return streaming.dx(laid_out(dy, x), x, mean, scale, slope, offset)


def runnable(network: Callable[[], Network] | None, x: Tensor, num_groups: int) -> Network | None:
    """See :class:`~..kernels.Kernels`."""
    found = network and network()
    return found if found and MODULES[type(found)].runs(found, x, num_groups) else None


@on_device
def network_forward(
    x: Tensor, num_groups: int, network: Network, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~..kernels.Kernels`."""
    check_devices(x, tensors)
    return MODULES[type(network)].forward(dense(x), num_groups, network, tensors)


@on_device
def network_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Network,
    tensors: tuple[Tensor | None, ...],
    needs_x: bool,
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """See :class:`~..kernels.Kernels`."""
    x = dense(x)
    backward = MODULES[type(network)].backward
    return backward(laid_out(dy, x), x, mean, var, network, tensors, needs_x)
