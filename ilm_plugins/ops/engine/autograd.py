"""The operation ``adaptive_norm`` with its own backward pass, computed by any backend's kernels."""

from collections.abc import Callable
from contextlib import nullcontext
from operator import is_

import torch
from torch import Tensor
from torch.autograd import Function

from . import operators, reference
from .activation import Activation
from .backends import CHOSEN, backend_for
from .layouts import dense, in_layout
from .network import Needs, Network, Tensors, with_none
from .plans import Plan, copy_back
from .reference import Equation, Rescale
from .running_statistics import update
from .shared_batch import SharedBatch, no_second_derivatives
from .torch_plan import TorchPlan, copy_buffers, without_autocast
from .tracing import is_traced

#: A function that returns the description of ``rescale`` for kernels that compute it, or None.
Describe = Callable[[], Network | None] | None
#: The most plans that a layer keeps, one for each kind of input.
MOST_PLANS = 64


def adaptive_norm(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Rescale,
    *tensors: Tensor | None,
    describe: Describe = None,
    running: tuple[Tensor, Tensor, float] | tuple[Tensor, Tensor, float, Tensor] | tuple[()] = (),
    plans: Callable[[], dict[tuple, Plan]] | None = None,
    activation: Activation | None = None,
    batch: SharedBatch | None = None,
) -> Tensor:
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
        describe: returns ``rescale``'s description for kernels, or None; or is None.
        running: BN's running mean and variance, their momentum, and the number of batches, if it is
            counted; empty unless the batch updates them.
        plans: returns a dict that keeps plans while ``describe`` returns the same; or None.
        activation: applied to the normalized values, by kernels in the same pass; or None.
        batch: the batch of several processes, whose moments ``rescale`` takes for BN; or None.

    Returns:
        y (N, C, *) with the dtype and the layout of x.

    Raises:
        RuntimeError: a backend is forced that cannot run x; a tensor is on another device than x,
            or has the wrong shape; or ``num_groups`` does not divide C.
        MemoryError: the C++ kernels lack memory for intermediate values.
    """
    equation = Equation(num_groups, eps, rescale, activation, batch)
    if is_traced(x, *tensors, *running[:2]):
        plan = None
    else:
        plan = _find_plan(x, equation, describe, tensors, {} if plans is None else plans())
    if plan is None:
        return _by_operations(x, equation, describe, tensors, running)
    plan, taken, updated = plan.prepared(x, tensors, running)
    y = _by_plan(plan, x, taken, updated, equation)
    if updated is not running:
        copy_back(updated, running)
    return y


def _find_plan(
    x: Tensor, equation: Equation, describe: Describe, tensors: Tensors, kept: dict[tuple, Plan]
) -> Plan | None:
    """Return the kept plan for x, or keep a new one; None if the reference computes x."""
    batch = equation.batch
    # All that a plan depends on but the layer's options, and what its checks depend on.
    key = (
        CHOSEN.get(),
        x.shape,
        x.dtype,
        x.device,
        x.stride(),
        x.is_neg(),
        not x.data_ptr() & 15,  # aligned to 16 bytes
        bool(tensors) and tensors[-1] is None,  # BN mixes the moments of the batch
        equation.activation,
        None if batch is None else batch.processes,
    )
    plan = kept.get(key)
    if plan is None:
        plan = _make_plan(x, equation, describe, tensors)
        if plan is not None:
            if len(kept) >= MOST_PLANS:
                kept.clear()
            kept[key] = plan
    return plan


def _make_plan(x: Tensor, equation: Equation, describe: Describe, tensors: Tensors) -> Plan | None:
    groups, batch = equation.num_groups, equation.batch
    _check_groups(x, groups)
    backend = backend_for(x, groups)
    if backend is None:
        return None
    plan, network = None, None if describe is None else describe()
    if network is not None:
        plan = backend.find_plan(x, groups, network, tensors, equation.activation)
    if plan is not None and batch is not None:
        plan = plan.over(batch.processes)
    return TorchPlan(backend, x, groups) if plan is None else plan


def _check_groups(x: Tensor, num_groups: int) -> None:
    if num_groups < 1 or x.shape[1] % num_groups:
        raise RuntimeError(
            f"adaptive_norm: {x.shape[1]} channels do not consist of {num_groups} groups; give a "
            "number that divides the channels"
        )


def _by_operations(
    x: Tensor, equation: Equation, describe: Describe, tensors: Tensors, running: tuple
) -> Tensor:
    """Return y by operations of torch, which it records, transforms or compiles."""
    groups, activation = equation.num_groups, equation.activation
    _check_groups(x, groups)
    y = operators.adaptive_norm(x, groups, describe, tensors, running, activation)
    if y is not None:
        return y
    if torch.is_grad_enabled() and not torch.jit.is_tracing():
        tensors = copy_buffers(tensors)
    with nullcontext() if torch.compiler.is_compiling() else without_autocast(x.device.type):
        y, mean, var = reference.adaptive_norm(
            x, groups, equation.eps, equation.rescale, *tensors, activation=activation
        )
    update(running, x, mean, var, equation.batch)
    return y


def _by_plan(plan: Plan, x: Tensor, tensors: Tensors, running: tuple, equation: Equation) -> Tensor:
    """Return y by a plan's forward pass, and record its backward pass."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return plan.forward(dense(x), tensors, running, equation)[0]
    inputs = plan.inputs(tensors)
    if inputs is None:
        groups = equation.num_groups
        plan = TorchPlan(backend_for(x, groups), x, groups)
        inputs = plan.inputs(tensors)
    first = plan.num_parameters
    call = plan, equation, inputs[first:], running
    return _apply(call, x, *inputs[:first])


#: A plan, what it computes, tensors without gradients, and BN's statistics that the batch updates.
Call = tuple[Plan, Equation, Tensors, tuple]


class _AdaptiveNorm(Function):
    """The autograd function of all plans."""

    @staticmethod
    def forward(ctx, call: Call, x: Tensor, *parameters: Tensor | None) -> Tensor:
        plan, equation, buffers, running = call
        y, saved = plan.forward(dense(x), (*parameters, *buffers), running, equation)
        ctx.call, ctx.parameters = call, parameters
        ctx.save_for_backward(x, saved, *parameters)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_dynamo_compiling():
            # Compiled autograd: traced, the reference's gradients would be 0.
            return torch._disable_dynamo(_AdaptiveNorm.backward)(ctx, dy)
        needs = ctx.needs_input_grad[1:]
        if dy is None:
            return None, *(None for _ in needs)
        x, saved, *parameters = ctx.saved_tensors
        return None, *_backward_of(ctx, dy, x, saved, parameters, needs)


def _backward_of(
    ctx, dy: Tensor, x: Tensor, saved: Tensor, parameters: Tensors, needs: Needs
) -> Tensors:
    """Return the gradients of x and of the parameters."""
    plan, equation, _, _ = ctx.call
    # This branch serves second derivatives, and several gradients at once (vmap).
    if torch.is_grad_enabled() or is_traced(dy):
        if plan.processes is not None:
            raise no_second_derivatives()
        return _differentiable_backward(ctx.call, dy, x, saved, parameters, needs)
    _check_unpacked(x, dy.dtype, dy.numel(), dy)
    _check_unpacked(saved, plan.saved_dtype, plan.num_saved, dy)
    # Hooks of saved tensors may have changed x's layout, and returned other parameters.
    are_contiguous = plan.is_contiguous and x.is_contiguous() and dy.is_contiguous()
    if not are_contiguous or x.is_neg() or dy.is_neg():
        x, dy = (in_layout(t.resolve_neg(), plan.is_contiguous) for t in (x, dy))
    if not all(map(is_, parameters, ctx.parameters)):
        parameters = plan.readable(x, parameters)
    saved = plan.aligned(saved.contiguous())
    return plan.backward(dy, x, saved, parameters, needs, equation)


def _differentiable_backward(
    call: Call, dy: Tensor, x: Tensor, saved: Tensor, parameters: Tensors, needs: Needs
) -> Tensors:
    """Return the gradients by the reference, which autograd can differentiate."""
    plan, (num_groups, eps, rescale, activation, _), buffers, _ = call
    kept = plan.buffers(saved)
    buffers = [None if given is None else t for given, t in zip(buffers, kept, strict=True)]
    with without_autocast(dy.device.type):
        with torch.enable_grad():
            # These are new variables, because one input may be, or depend on, another.
            inputs = [t if t is None else t.view_as(t) for t in (x, *parameters)]
            y, _, _ = reference.adaptive_norm(
                inputs[0], num_groups, eps, rescale, *inputs[1:], *buffers, activation=activation
            )
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        gradients = torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True)
    return with_none(gradients, needs)


def _check_unpacked(tensor: Tensor, dtype: torch.dtype, size: int, dy: Tensor) -> None:
    """Raise RuntimeError if a hook returns a saved tensor that kernels cannot read as it was."""
    is_as_packed = tensor.dtype is dtype and tensor.numel() == size
    if not is_as_packed or tensor.get_device() != dy.get_device():
        raise RuntimeError(
            f"a saved tensor of {size} values of {dtype} on {dy.device} came back as "
            f"{tensor.numel()} of {tensor.dtype} on {tensor.device}; have saved_tensors_hooks "
            "unpack what was packed"
        )


#: The C method below torch's ``apply``, whose Python code serves only torch.func.
_apply = super(Function, _AdaptiveNorm).apply
