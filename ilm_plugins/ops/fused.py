"""The primitive with its hand-written backward pass, over any module of kernels."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference
from .backends import is_traced, kernels_for
from .kernels import Kernels, Network
from .moments import duplicate, sum_groups
from .reference import Rescale, cast


class ByHand(NamedTuple):
    """A rescale function and its vector-Jacobian product, written by hand for the CPU's sake.

    ``vjp`` may multiply matrices, by which the last bits of an instance's gradients depend on its
    batch.
    """

    #: What ``rescale`` takes -> scale, shift (N, C), and tensors that the other takes as ``kept``.
    forward: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]

    #: dscale, dshift (N, C), ``kept``, and what ``rescale`` takes -> scale (N, C), the gradients of
    #: mean and var (N, G'), and those of ``rescale``'s tensors, None for what has none.
    vjp: Callable[..., tuple[Tensor | None, ...]]


def adaptive_norm(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Rescale,
    *tensors: Tensor | None,
    by_hand: ByHand | None = None,
    network: Callable[[], Network] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`ilm_plugins.ops.reference.adaptive_norm` computes, by the kernels that fit x.

    Kept for the backward pass are x, ``tensors``, the moments, and what ``by_hand`` keeps. There,
    with d for a gradient, m for the number of elements in a fine group, xhat for the standardized
    x, rstd for 1 / deviation:

    ::

        dscale, dshift = sums of dy * xhat and of dy over the map                  (N, C), both
        dmean, dvar    = vjp of rescale, and through rstd
                         dvar += -1/2 rstd^2 * sum of scale * dscale               (N, G'), both
        slope, offset  = 2/m * dvar, 1/m * (dmean - rstd * sum of scale * dshift)  (N, G'), both
        dx             = scale * rstd * dy + slope * (x - mean) + offset           (N, C, *)

    Gradients of these gradients are those of the reference.

    Args:
        by_hand: ``rescale`` and its derivative by hand, which autograd finds otherwise.
        network: a function that says what ``rescale`` is, for kernels that compute it themselves.
    """
    kernels = kernels_for(x, num_groups)
    if kernels is None:
        return reference.adaptive_norm(x, num_groups, eps, rescale, *tensors)
    network = kernels.runnable(network, x, num_groups)
    by_hand = by_hand if x.device.type == "cpu" and network is None else None
    primitive = Primitive(kernels, num_groups, eps, rescale, by_hand, network)
    if torch.is_grad_enabled():
        return _AdaptiveNorm.apply(primitive, x, *tensors)
    return primitive.forward(x, tensors)[:3]


class Primitive(NamedTuple):
    """What the passes have in common, tensors aside."""

    kernels: Kernels
    num_groups: int
    eps: float
    rescale: Rescale
    by_hand: ByHand | None
    network: Network | None

    def forward(
        self, x: Tensor, tensors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """y (N, C, *), mean and var (N, G'), and what ``by_hand`` keeps."""
        kept = ()
        if self.network is not None:
            found = self.kernels.network_forward(x, self.num_groups, self.network, tensors)
            return *found, kept

        def rescale(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal kept
            own = cast(tensors, mean.dtype)
            if self.by_hand is None:
                return self.rescale(mean, var, *own)
            with _without_autocast(x.device.type):
                scale, shift, kept = self.by_hand.forward(mean, var, *own)
            return scale, shift

        return *self.kernels.forward(x, self.num_groups, self.eps, rescale), kept

    def backward(
        self, dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, kept, tensors, needs_x: bool, needs
    ) -> tuple[Tensor | None, Iterable[Tensor | None]]:
        """dx and dtensors, see :func:`adaptive_norm`."""
        if self.network is not None:
            return self.kernels.network_backward(dy, x, mean, var, self.network, tensors, needs_x)
        rstd = (var + self.eps).rsqrt_()
        dscale, dshift = self.kernels.sums(dy, x, mean, rstd)
        rescaled = mean, var, *cast(tensors, mean.dtype)
        if self.by_hand is None:
            found = _vjp(self.rescale, needs, dscale, dshift, *rescaled)
        else:
            found = self.by_hand.vjp(dscale, dshift, kept, *rescaled)
        scale, dmean, dvar, *dtensors = found
        if not needs_x:
            return None, dtensors
        groups, m = self.num_groups, x.numel() // mean.numel()
        through_rstd = sum_groups(scale * dscale, groups)
        through_center = sum_groups(scale * dshift, groups)
        slope = torch.addcmul(dvar, through_rstd, rstd.square(), value=-0.5).mul_(2 / m)
        offset = torch.addcmul(dmean, through_center, rstd, value=-1).div_(m)
        scale = scale * duplicate(rstd, x.shape[1])
        return self.kernels.dx(dy, x, mean, scale, slope, offset), dtensors

    def differentiable_backward(self, dy: Tensor, x: Tensor, tensors, needs_x: bool, needs):
        """dx and dtensors, by operations that can be differentiated again."""
        with torch.enable_grad():
            # As variables of their own: one may be, or depend on, another.
            x, *tensors = (t if t is None else t.view_as(t) for t in (x, *tensors))
            y, _, _ = reference.adaptive_norm(x, self.num_groups, self.eps, self.rescale, *tensors)
        inputs, needs = (x, *tensors), (needs_x, *needs)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        found = torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True)
        dx, *dtensors = _where(needs, found)
        return dx, dtensors


class _AdaptiveNorm(Function):
    @staticmethod
    def forward(
        ctx, primitive: Primitive, x: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, var, kept = primitive.forward(x, tensors)
        ctx.primitive, ctx.num_kept = primitive, len(kept)
        ctx.save_for_backward(x, mean, var, *kept, *tensors)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx, dy: Tensor | None, *_) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, mean, var, *others = ctx.saved_tensors
        kept, tensors = others[: ctx.num_kept], others[ctx.num_kept :]
        _, needs_x, *needs = ctx.needs_input_grad
        with _without_autocast(dy.device.type):
            # Somebody may want gradients of these gradients, or many of them at once.
            if torch.is_grad_enabled() or is_traced(dy):
                gradients = ctx.primitive.differentiable_backward(dy, x, tensors, needs_x, needs)
                return None, gradients[0], *gradients[1]
            dx, dtensors = ctx.primitive.backward(dy, x, mean, var, kept, tensors, needs_x, needs)
        dtensors = (
            d if d is None or d.dtype == t.dtype else d.to(t.dtype)
            for d, t in zip(dtensors, tensors, strict=True)
        )
        return None, dx, *dtensors


def _without_autocast(device_type: str):
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


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


def _where(needs: Iterable[bool], found: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """What was found, at the places where it was needed; None elsewhere."""
    found = iter(found)
    return tuple(next(found) if need else None for need in needs)
