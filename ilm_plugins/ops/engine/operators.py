"""The primitive as operators of torch, by which models compiled by torch.compile run the kernels.

Dynamo's graph has ``layer`` or ``rescale``. The compiler traces through both, so what it compiles
has the operators without gradients that their autograd functions call; it takes the layout of
results from fake kernels. Lists of a network's tensors omit BN's statistics that are None.
"""

import functools
import inspect
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

from . import backends, cpu
from .activation import Activation
from .layouts import dense, in_layout
from .network import BATCH, Network, Tensors, with_none
from .plans import copy_back
from .pooling import coarsen, duplicate
from .reference import per_channel
from .running_statistics import update


def adaptive_norm(
    x: Tensor, num_groups: int, describe, tensors: Tensors, running, activation: Activation | None
) -> Tensor | None:
    """Return y if torch.compile traces x and kernels compute the layer; else None."""
    if not _is_compiled(x, num_groups, describe, (*tensors, *running[:2])):
        return None
    layer: Any = describe.__self__
    operator = layer.find_operator(x.device, x.dtype)
    # What Dynamo guards on is asked here again, because ``find_operator`` is a constant for it: a
    # changed option recompiles.
    if operator is None or not layer.has_papers_form:
        return None
    key, is_one_operator, mixes_batch, *options = operator
    buffers = tensors[layer.network.num_parameters :]
    trained = [t for t in buffers if t is not None and t.requires_grad]
    if read(layer, layer.network._fields) != options or trained:
        return None
    if is_one_operator:
        return _by_one_operator(x, num_groups, key, tensors, running, activation)
    y, mean, var = _with_compiled_passes(x, num_groups, key, tensors, mixes_batch)
    update(running, x, mean, var)
    return y if activation is None else activation(y)


def _is_compiled(x: Tensor, num_groups: int, describe, tensors: Tensors) -> bool:
    """Return whether torch.compile traces a call of a layer that operators may compute."""
    is_compiling = HAS_OPERATORS and torch.compiler.is_dynamo_compiling()
    if not is_compiling or torch.compiler._is_exporting_flag:
        return False
    # Dynamo of torch 2.7 traces neither `all` nor `in` of a frozenset.
    types = [type(t) for t in (x, *tensors) if t is not None]
    others = [kind for kind in types if kind not in (Tensor, nn.Parameter)]
    return (
        inspect.ismethod(describe)  # not a function, which Dynamo traces
        and backends.has_variances(x, num_groups)
        and not others
        and type(tensors[0]) is not Tensor
    )


def _by_one_operator(
    x: Tensor, num_groups: int, key: str, tensors: Tensors, running, activation: Activation | None
) -> Tensor:
    name, slope = activation or (None, 0.0)
    arguments = x, num_groups, key, name, slope, running[:2], _given(tensors)
    y, _, updated = torch.ops.ilm_plugins.layer(*arguments)
    for old, new in zip(running[:2], updated, strict=False):
        old.copy_(new)
    for tracked in running[3:]:
        tracked.add_(int(x.numel() > x.shape[1]))
    return y


def _with_compiled_passes(
    x: Tensor, num_groups: int, key: str, tensors: Tensors, mixes_batch: bool
):
    """Return y, mean and var of operations that the compiler writes, but the network."""
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    mean, var = _Moments.apply(x) if x.dim() > 2 else (x, torch.zeros_like(x))
    mean, var = coarsen(mean, var, num_groups)
    var = torch.where(var == torch.inf, torch.nan, var)
    if mixes_batch and tensors[-1] is None:
        pooled = mean.mean(0)
        off = mean - pooled.detach()  # whose gradients add up to 0
        tensors = [*tensors[:-2], pooled, (var + off * off).mean(0)]
    # The gradient of mean has that through x - mean already. The operator comes after, because the
    # compiler keeps for the backward pass, rather than repeats, what it finds after an operator.
    centered = x - per_channel(duplicate(mean.detach(), x.shape[1]), x)
    scale, shift = torch.ops.ilm_plugins.rescale(mean, var, x.shape[1], key, _given(tensors))
    y = per_channel(scale, x) * centered + per_channel(shift, x)
    return y.to(dtype), mean.detach(), var.detach()


class _Moments(Function):
    """The moments of channels. In the backward pass, torch's own would read x once more."""

    @staticmethod
    def forward(ctx, x):
        var, mean = torch.var_mean(x, tuple(range(2, x.dim())), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx, d_mean, d_var):
        x, mean = ctx.saved_tensors
        count = math.prod(x.shape[2:])
        slope, offset = per_channel(d_var * (2 / count), x), per_channel(d_mean / count, x)
        return slope * (x - per_channel(mean, x)) + offset


def _given(tensors: Tensors) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def find_operator(layer: Any, device: torch.device, dtype: torch.dtype) -> tuple | None:
    """Return how operators compute a layer; None if kernels do not compute it.

    It is the network as a string, whether one operator computes the layer, whether the network
    mixes the batch's moments, and its options. On the CPU, one operator computes the layer. On
    CUDA, the compiler writes the passes over x and fuses the affine map with what follows; its code
    for the CPU is slower than the kernels in C++.
    """
    x = torch.empty(1, layer.num_channels, 2, device=device, dtype=dtype)
    network, backend = layer.describe(), backends.backend_for(x, layer.moment_groups)
    if (
        network is None
        or backend is None
        # `is_exporting` is a constant, True, in Dynamo before torch 2.14 (PyTorch issue 176347).
        or torch.compiler._is_exporting_flag
        # In forward mode, operators would have a tangent of zero.
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or backend.find_plan(x, layer.moment_groups, network, (None,)) is None
    ):
        return None
    key = json.dumps((type(network).__name__, *network), default=lambda number: number.item())
    return key, backend is cpu, network.mixes_batch, *read(layer, type(network)._fields)


# As torch.compiler.assume_constant_result does, which would import the compiler. It is a method of
# layers, because Dynamo accepts no module as an argument of such a function.
find_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]


def read(layer: nn.Module, names: Sequence[str]) -> list:
    """Return a layer's attributes by name, tuples unpacked, None for a missing attribute."""
    values = [getattr(layer, name, None) for name in names]
    return [part for v in values for part in (v if isinstance(v, tuple) else (v,))]


@functools.cache
def _network(key: str) -> Network:
    kind, *fields = json.loads(key)
    return Network.by_name[kind](*(tuple(f) if isinstance(f, list) else f for f in fields))


def _all_tensors(network: Network, given: Tensors) -> list[Tensor | None]:
    return [*given, *[None] * (len(network.tensors) - len(given))]


# ---- a layer by one operator, on the CPU


class _Layer(Function):
    """The autograd function of ``layer``."""

    @staticmethod
    def forward(ctx, x, num_groups, key, activation, slope, running, *tensors):
        ctx.call = num_groups, key, activation, slope
        results = torch.ops.ilm_plugins.forward(x, *ctx.call, running, tensors)
        ctx.save_for_backward(x, results[1], *tensors)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        x, saved, *tensors = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]]
        arguments = x, *ctx.call, dy, saved, needs, tensors
        dx, *gradients = with_none(torch.ops.ilm_plugins.backward(*arguments), needs)
        return dx, *[None] * 5, *gradients


def _forward(x, num_groups, key, activation, slope, running, tensors):
    x, dtype = dense(x), torch.promote_types(x.dtype, torch.float32)
    plan, tensors = _plan(x, num_groups, key, activation, slope, tensors)
    # Operators change no argument: the kernels update copies.
    empty = x.new_empty((0, x.shape[1]), dtype=dtype)
    updated = torch.stack(running).to(dtype) if running else empty
    statistics = updated.unbind()
    plan, tensors, taken = plan.prepared(x, tensors, statistics)
    y, saved = plan.forward(x, tensors, taken)
    copy_back(taken, statistics)
    return y, saved, updated


def _plan(x, num_groups, key, activation, slope, tensors):
    """Return the plan, and the network's tensors, also those that are None."""
    network = _network(key)
    tensors = _all_tensors(network, tensors)
    applied = None if activation is None else Activation(activation, slope)
    return cpu.find_plan(x, num_groups, network, tensors, applied), tensors


def _fake_forward(x, num_groups, key, activation, slope, running, tensors):
    dtype = torch.promote_types(x.dtype, torch.float32)
    network = _network(key)
    sizes = network.sizes(x.shape[1])
    size = 2 * x.shape[0] * num_groups + sum(sizes[name] for name in network.buffers)
    if activation is not None:
        size += 2 * x.shape[0] * x.shape[1]
    updated = x.new_empty((len(running), x.shape[1]), dtype=dtype)
    return torch.empty_like(dense(x)), updated.new_empty(size), updated


def _backward(x, num_groups, key, activation, slope, dy, saved, needs, tensors):
    x = dense(x)
    plan, tensors = _plan(x, num_groups, key, activation, slope, tensors)
    parameters = tensors[: plan.num_parameters]
    given, needs = plan.readable(x, parameters), needs[: 1 + len(parameters)]
    dy = in_layout(dy.resolve_neg(), plan.is_contiguous)
    gradients = plan.backward(dy, x, saved, given, needs)
    pairs = zip(gradients, (x, *parameters), strict=True)
    return [d.to(t.dtype) for d, t in pairs if d is not None]


def _fake_backward(x, num_groups, key, activation, slope, dy, saved, needs, tensors):
    likes = torch.empty_like(dense(x)), *(t.new_empty(t.shape) for t in tensors)
    return [like for like, need in zip(likes, needs, strict=True) if need]


# ---- the network alone, between passes of the compiler, on CUDA


class _Rescale(Function):
    """The autograd function of ``rescale``."""

    @staticmethod
    def forward(ctx, mean, var, channels, key, *tensors):
        ctx.call = channels, key
        ctx.save_for_backward(mean, var, *tensors)
        return torch.ops.ilm_plugins.network(mean, var, channels, key, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_scale, d_shift):
        mean, var, *tensors = ctx.saved_tensors
        arguments = mean, var, *ctx.call, d_scale, d_shift, tensors
        d_mean, d_var, rows = torch.ops.ilm_plugins.network_backward(*arguments)
        # The compiler writes one sum for all tensors, of which each gradient is a view. In the
        # kernel, the last program would add up the rows alone.
        channels, key = ctx.call
        network = _network(key)
        row = _row(network, channels)
        sums = dict(zip(row, rows.sum(0).split([*row.values()]), strict=True))
        triples = zip(tensors, network.tensors, ctx.needs_input_grad[4:], strict=False)
        gradients = [_gradient_of(t, sums[name]) if need else None for t, name, need in triples]
        return d_mean, d_var, None, None, *gradients


def _network_alone(mean, var, channels, key, tensors):
    from .triton import network_alone

    network = _network(key)
    return network_alone.forward(mean, var, channels, network, _all_tensors(network, tensors))


def _fake_network(mean, var, channels, key, tensors):
    size = mean.shape[0], channels
    return mean.new_empty(size), mean.new_empty(size)


def _network_alone_backward(mean, var, channels, key, d_scale, d_shift, tensors):
    from .triton import network_alone

    network = _network(key)
    tensors = _all_tensors(network, tensors)
    return network_alone.backward(d_scale, d_shift, mean, var, network, tensors)


def _fake_network_backward(mean, var, channels, key, d_scale, d_shift, tensors):
    row = sum(_row(_network(key), channels).values())
    return torch.empty_like(mean), torch.empty_like(var), mean.new_empty((mean.shape[0], row))


def _row(network: Network, channels: int) -> dict[str, int]:
    """Return the sizes of an instance's gradients, see network_alone.backward, by tensor."""
    batch = dict.fromkeys(BATCH, channels) if network.mixes_batch else {}
    return network.gradient_sizes(channels) | batch


def _gradient_of(tensor: Tensor, values: Tensor) -> Tensor:
    copies = tensor.numel() // values.numel()
    values = values.to(tensor.dtype)
    return (values if copies == 1 else values.repeat(copies)).view(tensor.shape)


# ---- registration


def _applying(function: type[Function]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that applies an autograd function, which takes no list of tensors."""

    def apply(*arguments):
        *others, tensors = arguments
        return function.apply(*others, *tensors)

    return apply


#: Older versions of torch than 2.7 compile the reference.
HAS_OPERATORS = hasattr(torch.compiler, "_is_exporting_flag")
if HAS_OPERATORS:
    _library = library.Library("ilm_plugins", "FRAGMENT")
    _map = "Tensor x, int num_groups, str network, str? activation, float slope"
    _moments = "Tensor mean, Tensor var, int channels, str network"
    _d_map = f"{_map}, Tensor dy, Tensor saved, bool[] needs"
    _d_moments = f"{_moments}, Tensor d_scale, Tensor d_shift"
    _map += ", Tensor[] running"
    _two, _three = "(Tensor, Tensor)", "(Tensor, Tensor, Tensor)"
    for _name, _arguments, _results, _kernel, _fake in (
        ("forward", _map, _three, _forward, _fake_forward),
        ("backward", _d_map, "Tensor[]", _backward, _fake_backward),
        ("network", _moments, _two, _network_alone, _fake_network),
        ("network_backward", _d_moments, _three, _network_alone_backward, _fake_network_backward),
    ):
        _library.define(f"{_name}({_arguments}, Tensor[] tensors) -> {_results}")
        for _device in ("CPU", "CUDA"):
            _library.impl(_name, _kernel, _device)
        library.register_fake(f"ilm_plugins::{_name}", _fake, lib=_library)
    for _name, _arguments, _results, _function in (
        ("layer", _map, _three, _Layer),
        ("rescale", _moments, _two, _Rescale),
    ):
        _library.define(f"{_name}({_arguments}, Tensor[] tensors) -> {_results}")
        _library.impl(_name, _applying(_function), "CompositeImplicitAutograd")
