"""The primitive's forward and backward pass by Triton kernels, on CUDA.

For a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool, rescale -> affine
    backward   sums of (channel, split of positions)    -> sum, vjp      -> dx, gradients

The kernel between the passes over x has a program for each instance; a torch function takes its
place for a network that the kernels lack. The last program of the first kernel that reads a channel
computes BN's statistics of the batch, and updates the running statistics; if several processes
share the batch, a kernel of its own does so once theirs are gathered. With a small network, an
instance that fits into the registers of one program, such as a detector's box head, is read once:
the *one-read* kernels do all in one program.

An activation belongs to the affine map and to the one-read kernel. The gradient of its input takes
scale and shift, which the forward pass keeps.

Contiguous and channels-last maps are read and written without a copy. The host never waits for the
device, and the order of additions is the same in each run.
"""

import torch
from torch import Tensor

from . import devices, one_read, plan
from .devices import INTERPRETED, has_bfloat16
from .plan import find_plan
from .streaming import affine, dx, moments, sums

__all__ = [
    "affine",
    "devices",
    "dx",
    "find_plan",
    "moments",
    "one_read",
    "plan",
    "sums",
    "supports",
]


def supports(x: Tensor) -> bool:
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and (x.dtype != torch.bfloat16 or has_bfloat16(x.device))
        and (x.shape.numel() < 2**30 or x.shape[2:].numel() < 2**30)
    )
