"""The operation ``adaptive_norm`` with its own backward pass, computed by any backend's kernels."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import is_
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from . import operators, reference
from .activation import Activation
from .backends import _backend, _default, kernels_for
from .layouts import dense, in_layout, in_layout_of
from .moments import duplicate
from .network import Network, Tensors, check_tensors, with_none
from .plans import LayerPlan
from .reference import Rescale, cast
from .shared_batch import SharedBatch, no_second_derivatives
from .tracing import is_traced

#: The most plans that a layer keeps, one for each kind of input.
MOST_PLANS = 64

#: For each input of a function, whether its gradient is needed.
Needs = Sequence[bool]


def adaptive_norm(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Rescale,
    *tensors: Tensor | None,
    network: Callable[[], Network | None] | None = None,
    running: tuple[Tensor, Tensor, float] | tuple[Tensor, Tensor, float, Tensor] | tuple[()] = (),
    plans: Callable[[], dict[tuple, LayerPlan]] | None = None,
    activation: Activation | None = None,
    batch: SharedBatch | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Standardize each instance's channel groups, and rescale by a function of their moments.

    ::

        mean, var    = moments(x, num_groups)                              (N, G')
        scale, shift = rescale(mean, var, *tensors)                        (N, C), both
        y            = scale * (x - mean) / sqrt(var + eps) + shift        (N, C, *)
        y            = activation(y), if given

    The backend that fits x computes it. x, ``tensors`` and the moments are saved for the backward
    pass. Here d stands for a gradient, m is the number of elements of a fine group and rstd is
    1 / sqrt(var + eps)::

        scale         *= rstd: y = scale * (x - mean) + shift                      (N, C)
        dscale, dshift = sums of dy * (x - mean) and of dy over the map            (N, C), both
        dmean, dvar    = the moments' gradients through scale and shift            (N, G'), both
        slope, offset  = 2/m * dvar, 1/m * (dmean - sum of scale * dshift)         (N, G'), both
        dx             = scale * dy + slope * (x - mean) + offset                  (N, C, *)

    Second derivatives are computed by the reference.

    Args:
        x: (N, C, *) floating point, any number of spatial dimensions, any layout.
        num_groups: G', the number of finest channel groups whose moments ``rescale`` asks for.
        eps: added to the variance, more than 0.
        rescale: a pure, differentiable function of only the moments and ``tensors``, so that a
            backward pass can be derived from its vector-Jacobian product.
        tensors: parameters and buffers of ``rescale``, or None; handed over in the moments' dtype,
            at least float32.
        network: returns the description of ``rescale`` for kernels that compute it, or None; or is
            None.
        running: BN's running mean and variance, their momentum, and the number of batches, if it is
            counted; empty unless the batch updates them.
        plans: returns a dict, which keeps the plans of kernels for further calls as long as
            ``num_groups`` and the description of ``network`` stay the same; or None.
        activation: applied to the normalized values, by kernels in the same pass; or None.
        batch: the batch of several processes, whose moments ``rescale`` takes for BN; or None.

    Returns:
        y (N, C, *) with the dtype and the layout of x; mean and var (N, G'), detached, or None and
        None from kernels that have updated the running statistics.

    Raises:
        RuntimeError: a backend is forced that cannot run x; a tensor is on another device than x,
            or has the wrong shape; or ``num_groups`` does not divide C.
        MemoryError: the C++ kernels lack memory for intermediate values.
    """
    updated = (*running[:2], *running[3:]) if running else ()
    kept = None if plans is None or is_traced(x, *tensors, *updated[:2]) else plans()
    if kept is not None:
        # All that a plan depends on but the layer's options, and what checks below depend on.
        key = (
            _backend.get(_default),
            x.shape,
            x.dtype,
            x.device,
            x.stride(),
            x.is_neg(),
            not x.data_ptr() & 15,
            bool(tensors) and tensors[-1] is None,
            activation,
            None if batch is None else batch.processes,
        )
        plan = kept.get(key)
        if plan is not None and not plan.has_trained_buffers(tensors):
            return _by_kernels(x, eps, rescale, plan, tensors, updated), None, None
    if num_groups < 1 or x.shape[1] % num_groups:
        raise RuntimeError(
            f"adaptive_norm: {x.shape[1]} channels do not consist of {num_groups} groups; give a "
            "number that divides the channels"
        )
    kernels = kernels_for(x, num_groups, (*tensors, *updated[:2]))
    if kernels is None:
        if found := operators.adaptive_norm(x, num_groups, network, tensors, running, activation):
            return found
        copies = copy_buffers(tensors)
        with nullcontext() if torch.compiler.is_compiling() else _without_autocast(x.device.type):
            return reference.adaptive_norm(
                x, num_groups, eps, rescale, *copies, activation=activation
            )
    description = None if network is None else network()
    if description is not None:
        plan = kernels.find_plan(x, num_groups, description, tensors, updated, activation)
        if plan is not None and batch is not None:
            plan = plan.over(batch.processes)
        # Kernels that compute the network have no gradients of buffers.
        if plan is not None and not (is_recording() and plan.has_trained_buffers(tensors)):
            if kept is not None:
                if len(kept) >= MOST_PLANS:
                    kept.clear()
                kept[key] = plan
            return _by_kernels(x, eps, rescale, plan, tensors, updated), None, None
    passes = RescalePasses(kernels, x.shape[1], num_groups, eps, rescale, activation)
    given = copy_buffers(tensors)
    with _without_autocast(x.device.type):
        y, mean, var = _apply(passes, x, *given) if is_recording() else passes.forward(x, given)[0]
    return y, mean, var


def _by_kernels(
    x: Tensor,
    eps: float,
    rescale: Rescale,
    plan: LayerPlan,
    tensors: Tensors,
    running: Tensors,
) -> Tensor:
    """Return y by the plan of kernels that compute the network, too."""
    if not plan.takes((*tensors, *running[:2]) if running else tensors):

        def again(plan: LayerPlan, tensors: Tensors, running: Tensors) -> Tensor:
            return _by_kernels(x, eps, rescale, plan, tensors, running)

        return plan.call_with_copies(again, x, tensors, running)
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return plan.forward(dense(x), tensors, running)[0]
    first = plan.network.num_parameters
    call = plan, eps, rescale, tensors[first:], running
    return _apply_plan(call, x, *tensors[:first])


def is_recording() -> bool:
    """Return whether autograd records; in inference mode, it does not even with enable_grad."""
    if torch.compiler.is_compiling():  # torch.compile cannot trace is_inference_mode_enabled
        return torch.is_grad_enabled()
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def copy_buffers(tensors: Tensors) -> Tensors:
    """Return the tensors; while autograd records, all but Parameters are copies."""
    # Between forward and backward, another forward may overwrite buffers.
    if not is_recording() or torch.jit.is_tracing():
        return tensors
    return [t if t is None or isinstance(t, Parameter) else t.clone() for t in tensors]


class RescalePasses(NamedTuple):
    """The passes of a call whose ``rescale`` is computed by torch, between kernels over the map."""

    kernels: ModuleType
    num_channels: int
    num_groups: int
    eps: float
    rescale: Rescale
    activation: Activation | None = None

    def forward(self, x: Tensor, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """Return (y, mean, var), and the tensors that the backward pass needs beside x."""
        x = dense(x)
        mean, var = self.kernels.moments(x, self.num_groups)
        scale, shift = self.affine_coefficients(mean, var, *cast(tensors, mean.dtype))
        y = self.kernels.affine(x, mean, scale, shift)
        if self.activation is not None:
            y = self.activation(y, inplace=True)
        return (y, mean, var), (mean, var, *tensors)

    def tensors(self, x: Tensor, mean: Tensor, var: Tensor, *tensors: Tensor | None) -> Tensors:
        """Return the tensors of ``rescale`` from the tensors that :meth:`forward` saved."""
        return tensors

    def affine_coefficients(
        self, mean: Tensor, var: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scale of x - mean and the shift, (N, C) each, in mean's dtype."""
        scale, shift = self.rescale(mean, var, *tensors)
        rstd = duplicate((var + self.eps).rsqrt(), self.num_channels)
        return (scale * rstd).to(mean.dtype), shift.expand_as(rstd).to(mean.dtype)

    def backward(
        self, dy: Tensor, x: Tensor, tensors: Tensors, saved: Tensors, needs: Needs
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and each tensor, None where ``needs`` is false."""
        mean, var = (t.contiguous() for t in saved[:2])  # hooks may return others
        x = dense(x)
        dy = in_layout_of(x, dy)
        needs_x, *needs = needs
        tensors = cast(tensors, mean.dtype)
        if self.activation is not None:
            z = self.kernels.affine(x, mean, *self.affine_coefficients(mean, var, *tensors))
            dy = in_layout_of(x, self.activation.gradient(dy, z))
        dscale, dshift = self.kernels.sums(dy, x, mean)
        scale, dmean, dvar, *dtensors = _vjp(
            self.affine_coefficients, needs, dscale, dshift, mean, var, *tensors
        )
        if not needs_x:
            return None, *dtensors
        m = x.numel() // mean.numel()
        through_center = (scale * dshift).unflatten(1, (self.num_groups, -1)).sum(2)
        slope, offset = dvar * (2 / m), (dmean - through_center) / m
        return self.kernels.dx(dy, x, mean, scale, slope, offset), *dtensors


def differentiable_backward(
    options: tuple[int, float, Rescale, Activation | None],
    dy: Tensor,
    x: Tensor,
    tensors: Tensors,
    needs: Needs,
) -> Tensors:
    """Return the gradients by the reference, which autograd can differentiate."""
    num_groups, eps, rescale, activation = options
    with torch.enable_grad():
        # These are new variables, because one input may be, or depend on, another.
        inputs = [t if t is None else t.view_as(t) for t in (x, *tensors)]
        y, _, _ = reference.adaptive_norm(
            inputs[0], num_groups, eps, rescale, *inputs[1:], activation=activation
        )
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    gradients = torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True)
    return with_none(gradients, needs)


class _AdaptiveNorm(Function):
    """The autograd function of a call whose ``rescale`` torch computes."""

    @staticmethod
    def forward(ctx, passes: RescalePasses, x: Tensor, *tensors: Tensor | None) -> Tensors:
        outputs, saved = passes.forward(x, tensors)
        ctx.passes = passes
        ctx.save_for_backward(x, *saved)
        ctx.dtype, ctx.size = saved[0].dtype, saved[0].numel()
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, dy: Tensor | None, *_) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_dynamo_compiling():
            # Compiled autograd: traced, the reference's gradients would be 0.
            return torch._disable_dynamo(_AdaptiveNorm.backward)(ctx, dy)
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        passes, needs = ctx.passes, ctx.needs_input_grad[1:]
        x, *saved = ctx.saved_tensors
        tensors = saved[2:]
        with _without_autocast(dy.device.type):
            # This branch serves second derivatives, and several gradients at once (vmap).
            if torch.is_grad_enabled() or is_traced(dy):
                options = passes.num_groups, passes.eps, passes.rescale, passes.activation
                return None, *differentiable_backward(options, dy, x, tensors, needs)
            _check_unpacked(x, dy.dtype, dy.numel(), dy)
            _check_unpacked(saved[0], ctx.dtype, ctx.size, dy)
            gradients = passes.backward(dy, x, tensors, saved, needs)
        gradients = (
            d if d is None or d.dtype == t.dtype else d.to(t.dtype)
            for d, t in zip(gradients, (x, *tensors), strict=True)
        )
        return None, *gradients


#: A call of a layer whose network is computed by kernels, too: their plan, see engine/plain.py; eps
#: and ``rescale``, for second derivatives; the network's buffers; BN's statistics that the kernels
#: update, or none.
Call = tuple[LayerPlan, float, Rescale, Tensors, Tensors]


class _AdaptiveNormByKernels(Function):
    """The autograd function of a call whose network is computed by kernels, too."""

    @staticmethod
    def forward(ctx, call: Call, x: Tensor, *parameters: Tensor | None) -> Tensor:
        plan, _, _, buffers, running = call
        y, statistics = plan.forward(dense(x), (*parameters, *buffers), running)
        ctx.call, ctx.parameters = call, parameters
        ctx.save_for_backward(x, statistics, *parameters)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_dynamo_compiling():
            # Compiled autograd: traced, the reference's gradients would be 0.
            return torch._disable_dynamo(_AdaptiveNormByKernels.backward)(ctx, dy)
        needs = ctx.needs_input_grad[1:]
        if dy is None:
            return None, *(None for _ in needs)
        x, statistics, *parameters = ctx.saved_tensors
        return None, *_backward_of(ctx, dy, x, statistics, parameters, needs)


def _backward_of(
    ctx, dy: Tensor, x: Tensor, statistics: Tensor, parameters: Tensors, needs: Needs
) -> Tensors:
    """Return the gradients of x and of the parameters."""
    plan = ctx.call[0]
    # This branch serves second derivatives, and several gradients at once (vmap).
    if torch.is_grad_enabled() or is_traced(dy):
        if plan.processes is not None:
            raise no_second_derivatives()
        return _differentiable_backward_of(ctx.call, dy, x, statistics, parameters, needs)
    if (
        x.dtype is not dy.dtype
        or x.numel() != dy.numel()
        or statistics.dtype is not plan.statistics_dtype
        or statistics.numel() != plan.num_statistics
        or not x.get_device() == statistics.get_device() == dy.get_device()
    ):  # tell which, and how
        _check_unpacked(x, dy.dtype, dy.numel(), dy)
        _check_unpacked(statistics, plan.statistics_dtype, plan.num_statistics, dy)
    is_ready = plan.is_contiguous and x.is_contiguous() and dy.is_contiguous()
    if not is_ready or x.is_neg() or dy.is_neg():  # hooks may have changed x's layout
        x, dy = (in_layout(t.resolve_neg(), plan.is_contiguous) for t in (x, dy))
    # Hooks may have returned others.
    if not all(map(is_, parameters, ctx.parameters)) and not plan.takes(parameters):
        check_tensors(x, plan.network, parameters)
        parameters = plan.adapted(parameters)
    statistics = plan.aligned(statistics.contiguous())
    return plan.backward(dy, x, statistics, parameters, needs)


def _differentiable_backward_of(
    call: Call, dy: Tensor, x: Tensor, statistics: Tensor, parameters: Tensors, needs: Needs
) -> Tensors:
    """Return the gradients of x and of the parameters by :func:`differentiable_backward`."""
    plan, eps, rescale, buffers, _ = call
    kept = plan.buffers(statistics)
    buffers = [None if given is None else t for given, t in zip(buffers, kept, strict=True)]
    needs = *needs, *(False for _ in buffers)
    with _without_autocast(dy.device.type):
        options = plan.num_groups, eps, rescale, plan.activation
        gradients = differentiable_backward(options, dy, x, (*parameters, *buffers), needs)
    return gradients[: 1 + len(parameters)]


def _check_unpacked(tensor: Tensor, dtype: torch.dtype, size: int, dy: Tensor) -> None:
    """Raise RuntimeError if a hook returns a saved tensor that kernels cannot read as it was."""
    is_on_device = tensor.get_device() == dy.get_device()
    if tensor.dtype is not dtype or tensor.numel() != size or not is_on_device:
        raise RuntimeError(
            f"a saved tensor of {size} values of {dtype} on {dy.device} came back as "
            f"{tensor.numel()} of {tensor.dtype} on {tensor.device}; have saved_tensors_hooks "
            "unpack what was packed"
        )


#: The C method below torch's ``apply``, whose Python code serves only torch.func.
_apply = super(Function, _AdaptiveNorm).apply
_apply_plan = super(Function, _AdaptiveNormByKernels).apply


def _without_autocast(device_type: str):
    available = torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


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
