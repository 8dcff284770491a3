"""The primitive's forward and backward pass by Triton kernels, on CUDA.

Of a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool -> rescale -> affine
    backward   sums of (channel, split of positions)    -> sum  -> vjp     -> dx

Between the passes over x runs a function of torch, or, for an auto-encoder or a mixture of
normalizers, one kernel with a program for each instance. With an auto-encoder, an instance that
fits into the registers of one program, such as a detector's box head, is read once: the *one-read*
kernels do all steps in one program.

Contiguous and channels-last maps are read and written without a copy. The host never waits for the
device, and the order of additions is the same in each run.
"""

import torch
from torch import Tensor

from ..layouts import dense, laid_out
from ..networks import Autoencoder, Exemplar, Network, Switch, check_tensors
from . import autoencoder, mixture, streaming
from .launching import INTERPRETED, on_device

#: Kind of network -> the module with its kernels.
MODULES = {Autoencoder: autoencoder, Exemplar: mixture, Switch: mixture}


def supports(x: Tensor) -> bool:
    """Whether the kernels take x's device, dtype and size."""
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.shape[2:].numel() < 2**30
    )


@on_device
def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """See :class:`~..networks.Kernels`."""
    return streaming.moments(dense(x), num_groups)


@on_device
def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See :class:`~..networks.Kernels`."""
    return streaming.affine(dense(x), mean, scale, shift)


@on_device
def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`~..networks.Kernels`."""
    x = dense(x)
    return streaming.centered_sums(laid_out(dy, x), x, mean)


@on_device
def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """See :class:`~..networks.Kernels`."""
    x = dense(x)
    return streaming.dx(laid_out(dy, x), x, mean, scale, slope, offset)


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    """See :class:`~..networks.Kernels`."""
    return MODULES[type(network)].runs(network, x, num_groups)


@on_device
def forward(
    x: Tensor, num_groups: int, network: Network, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~..networks.Kernels`."""
    check_tensors(x, network, tensors)
    return MODULES[type(network)].forward(dense(x), num_groups, network, tensors)


@on_device
def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Network,
    tensors: tuple[Tensor | None, ...],
    needs_x: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """See :class:`~..networks.Kernels`."""
    x = dense(x)
    of_network = MODULES[type(network)].backward
    return of_network(laid_out(dy, x), x, mean, var, network, tensors, needs_x)
