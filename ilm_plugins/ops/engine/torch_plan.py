"""The plan of a layer whose network torch computes, between kernels over the map."""

import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .layouts import becomes_contiguous, in_layout
from .network import Needs, Tensors, with_none
from .plans import Plan
from .pooling import duplicate
from .reference import Equation, cast
from .running_statistics import update


class TorchPlan(Plan):
    """The plan of kernels over the map of which all tensors may have gradients."""

    num_parameters = sys.maxsize  # all

    def __init__(self, backend: Any, x: Tensor, num_groups: int) -> None:
        self.backend, self.num_groups = backend, num_groups
        self.is_contiguous = becomes_contiguous(x)
        self.saved_dtype = torch.promote_types(x.dtype, torch.float32)
        self.num_saved = 2 * x.shape[0] * num_groups

    def inputs(self, tensors: Tensors) -> Tensors:
        return copy_buffers(tensors)

    def forward(
        self, x: Tensor, tensors: Tensors, running: tuple, equation: Equation
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(x.device.type):
            saved = self.backend.moments(x, self.num_groups)
            mean, var = saved.unbind()
            scale, shift = _coefficients(x, equation, mean, var, *cast(tensors, mean.dtype))
            y = self.backend.affine(x, mean, scale, shift)
            if equation.activation is not None:
                y = equation.activation(y, inplace=True)
        update(running, x, mean, var, equation.batch)
        return y, saved

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        saved: Tensor,
        tensors: Tensors,
        needs: Needs,
        equation: Equation,
    ) -> list[Tensor | None]:
        needs_x, *needs = needs
        mean, var = saved.unbind()
        coefficients, tensors = partial(_coefficients, x, equation), cast(tensors, mean.dtype)
        with without_autocast(x.device.type):
            if equation.activation is not None:
                z = self.backend.affine(x, mean, *coefficients(mean, var, *tensors))
                dy = in_layout(equation.activation.gradient(dy, z), self.is_contiguous)
            dscale, dshift = self.backend.sums(dy, x, mean)
            scale, dmean, dvar, *dtensors = _vjp(
                coefficients, needs, dscale, dshift, mean, var, *tensors
            )
            if not needs_x:
                return [None, *dtensors]
            m = x.numel() // mean.numel()
            through_center = (scale * dshift).unflatten(1, (self.num_groups, -1)).sum(2)
            slope, offset = dvar * (2 / m), (dmean - through_center) / m
            return [self.backend.dx(dy, x, mean, scale, slope, offset), *dtensors]


def copy_buffers(tensors: Tensors) -> Tensors:
    """Return the tensors, of all but Parameters copies, which another forward pass can't change."""
    return [t if t is None or isinstance(t, Parameter) else t.clone() for t in tensors]


def _coefficients(
    x: Tensor, equation: Equation, mean: Tensor, var: Tensor, *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the scale of x - mean and the shift, (N, C) each, in mean's dtype."""
    scale, shift = equation.rescale(mean, var, *tensors)
    rstd = duplicate((var + equation.eps).rsqrt(), x.shape[1])
    return (scale * rstd).to(mean.dtype), shift.expand_as(rstd).to(mean.dtype)


def _vjp(rescale, needs: Needs, dscale, dshift, mean, var, *tensors) -> tuple[Tensor | None, ...]:
    """Return the scale, then the gradients of mean, var and each needed tensor, else None."""
    with torch.enable_grad():
        mean, var = (t.detach().requires_grad_() for t in (mean, var))
        leaves = [t if t is None else t.detach() for t in tensors]
        wanted = [t.requires_grad_() for t, need in zip(leaves, needs, strict=True) if need]
        scale, shift = rescale(mean, var, *leaves)
    pairs = [(o, d) for o, d in ((scale, dscale), (shift, dshift)) if o.requires_grad]
    outputs, gradients = zip(*pairs, strict=True)
    dmean, dvar, *dtensors = torch.autograd.grad(
        outputs, (mean, var, *wanted), gradients, materialize_grads=True
    )
    return scale.detach(), dmean, dvar, *with_none(dtensors, needs)


def without_autocast(device_type: str):
    available = torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
