"""The primitive with its hand-written backward pass, over any module of kernels."""

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference
from .backends import kernels_for
from .moments import duplicate, sum_groups
from .reference import Rescale, cast

Vjp = Callable[..., tuple[Tensor | None, ...]]


def adaptive_norm(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Rescale,
    *tensors: Tensor | None,
    vjp: Vjp | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`ilm_plugins.ops.reference.adaptive_norm` computes, by the kernels that fit x.

    Kept for the backward pass are x, ``tensors`` and the moments. There, with d for a gradient, m
    for the number of elements in a fine group, xhat for the standardized x, rstd for 1 / deviation:

    ::

        dscale, dshift = sums of dy * xhat and of dy over the map                  (N, C), both
        dmean, dvar    = vjp of rescale, and through rstd
                         dvar += -1/2 rstd^2 * sum of scale * dscale               (N, G'), both
        slope, offset  = 2/m * dvar, 1/m * (dmean - rstd * sum of scale * dshift)  (N, G'), both
        dx             = scale * rstd * dy + slope * (x - mean) + offset           (N, C, *)

    Gradients of these gradients are those of the reference.

    Args:
        vjp: the vector-Jacobian product of ``rescale`` where there is one by hand: a function of
            dscale, dshift, and of what ``rescale`` takes, that returns scale and the gradients of
            all that ``rescale`` takes, None for what has none. Otherwise autograd finds it.
    """
    kernels = kernels_for(x)
    if kernels is None:
        return reference.adaptive_norm(x, num_groups, eps, rescale, *tensors)
    return _AdaptiveNorm.apply(kernels, x, num_groups, eps, rescale, vjp, *tensors)


class _AdaptiveNorm(Function):
    @staticmethod
    def forward(
        ctx,
        kernels: ModuleType,
        x: Tensor,
        num_groups: int,
        eps: float,
        rescale: Rescale,
        vjp: Vjp | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def scale_and_shift(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            return rescale(mean, var, *cast(tensors, mean.dtype))

        y, mean, var = kernels.forward(x, num_groups, eps, scale_and_shift)
        ctx.kernels, ctx.num_groups, ctx.eps = kernels, num_groups, eps
        ctx.rescale, ctx.vjp = rescale, vjp
        ctx.save_for_backward(x, mean, var, *tensors)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx, dy: Tensor | None, *_) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            return _differentiable_backward(ctx, dy)
        if torch.is_autocast_enabled(dy.device.type):
            with torch.autocast(dy.device.type, enabled=False):
                return _backward(ctx, dy)
        return _backward(ctx, dy)


#: How many arguments of _AdaptiveNorm.forward come before ``tensors``; x is the second.
_OTHERS = 6


def _backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, var, *tensors = ctx.saved_tensors
    _, needs_x, *_ = ctx.needs_input_grad
    vjp = ctx.vjp or partial(_vjp, ctx.rescale, ctx.needs_input_grad[_OTHERS:])
    rstd = (var + ctx.eps).rsqrt_()
    dscale, dshift = ctx.kernels.sums(dy, x, mean, rstd)
    scale, dmean, dvar, *dtensors = vjp(dscale, dshift, mean, var, *cast(tensors, mean.dtype))
    dx = None
    if needs_x:
        groups, m = ctx.num_groups, x[0].numel() // ctx.num_groups
        through_rstd = sum_groups(scale * dscale, groups) * rstd.square()
        through_center = sum_groups(scale * dshift, groups) * rstd
        slope = torch.sub(dvar, through_rstd, alpha=0.5) * (2 / m)
        offset = (dmean - through_center) / m
        scale = scale * duplicate(rstd, x.shape[1])
        dx = ctx.kernels.dx(dy, x, mean, scale, slope, offset)
    dtensors = (
        d if d is None or d.dtype == t.dtype else d.to(t.dtype)
        for d, t in zip(dtensors, tensors, strict=True)
    )
    return None, dx, *(None,) * (_OTHERS - 2), *dtensors


def _vjp(rescale, needs, dscale, dshift, mean, var, *tensors) -> tuple[Tensor | None, ...]:
    """``vjp`` by autograd; None for the tensors that need no gradient."""
    with torch.enable_grad():
        mean, var = (t.detach().requires_grad_() for t in (mean, var))
        tensors = [t if t is None else t.detach() for t in tensors]
        wanted = [t.requires_grad_() for t, need in zip(tensors, needs, strict=True) if need]
        scale, shift = rescale(mean, var, *tensors)
    pairs = [(o, d) for o, d in ((scale, dscale), (shift, dshift)) if o.requires_grad]
    dmean, dvar, *found = torch.autograd.grad(
        [o for o, _ in pairs],
        (mean, var, *wanted),
        [d for _, d in pairs],
        materialize_grads=True,
    )
    return scale.detach(), dmean, dvar, *_where(needs, found)


def _differentiable_backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, _, _, *tensors = ctx.saved_tensors
    with torch.enable_grad():
        y, _, _ = reference.adaptive_norm(x, ctx.num_groups, ctx.eps, ctx.rescale, *tensors)
    inputs = (None, x, *(None,) * (_OTHERS - 2), *tensors)
    wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
    found = torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True)
    return _where(ctx.needs_input_grad, found)


def _where(needs: Iterable[bool], found: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """What was found, at the places where it was needed; None elsewhere."""
    found = iter(found)
    return tuple(next(found) if need else None for need in needs)
