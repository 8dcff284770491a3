"""The primitive as operators of torch, by which models compiled by torch.compile run the kernels.

The compiler takes the layout of results from fake kernels. Tensor lists omit missing tensors;
``present`` marks which are given.
"""

import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.autograd import forward_ad

from . import backends, cpu
from .activation import Activation
from .layouts import dense, in_layout_of
from .moments import coarsen, duplicate, over_batch
from .network import BATCH, Network, Tensors, with_none
from .reference import per_channel
from .running_statistics import update
from .tracing import PLAIN


def adaptive_norm(
    x: Tensor, num_groups: int, network, tensors: Tensors, running, activation: Activation | None
) -> Tensor | None:
    """Return y if torch.compile traces x and kernels compute the layer; else None."""
    is_compiling = HAS_OPERATORS and torch.compiler.is_dynamo_compiling()
    if network is None or not is_compiling or torch.compiler._is_exporting_flag:
        return None
    if not backends.has_variances(x, num_groups):
        return None
    types = [type(t) for t in (tensors[0], x, *tensors, *running[:2])]
    if not all(kind in PLAIN for kind in types) or types[0] is Tensor:
        return None
    if not inspect.ismethod(network):  # but a function, which Dynamo traces
        return None
    layer: Any = network.__self__
    described = layer.network_for_operators(x.device, x.dtype)
    if described is None:
        return None
    key, num_parameters, mixes_batch, names, *options = described
    buffers = [t for t in tensors[num_parameters:] if t is not None]
    # Dynamo guards on what is compared here, so a changed option recompiles.
    if read(layer, names) != options or any(buffer.requires_grad for buffer in buffers):
        return None
    if leaves_passes(x):
        y, mean, var = _with_compiled_passes(x, num_groups, key, tensors, mixes_batch)
        update(running, x, mean, var)
        return y if activation is None else activation(y)
    present, given = [t is not None for t in tensors], [t for t in tensors if t is not None]
    arguments = x, num_groups, key, given, present, running[:2]
    name, slope = activation or (None, 0.0)
    y, _, updated = torch.ops.ilm_plugins.forward(*arguments, name, slope)
    for old, new in zip(running[:2], updated, strict=False):
        old.copy_(new)
    for tracked in running[3:]:
        tracked.add_(int(x.numel() > x.shape[1]))
    return y


def leaves_passes(x: Tensor) -> bool:
    """Return whether the compiler writes the passes over x, and a kernel is the network alone.

    On CUDA the compiler fuses the affine map with what follows; its code for the CPU is slower than
    the kernels in C++.
    """
    return x.is_cuda


def _with_compiled_passes(
    x: Tensor, num_groups: int, key: str, tensors: Tensors, mixes_batch: bool
):
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    positions = tuple(range(2, x.dim()))
    if positions:
        var, mean = torch.var_mean(x, positions, correction=0)
    else:
        mean, var = x, torch.zeros_like(x)
    mean, var = coarsen(mean, var, num_groups)
    var = torch.where(var == torch.inf, torch.nan, var)
    if mixes_batch and tensors[-1] is None:
        tensors = [*tensors[:-2], *(t.flatten() for t in over_batch(mean, var))]
    present, given = [t is not None for t in tensors], [t for t in tensors if t is not None]
    # The gradient of mean has that through x - mean already. The operator comes after, because the
    # compiler keeps for the backward pass, rather than repeats, what it finds after an operator.
    centered = x - per_channel(duplicate(mean.detach(), x.shape[1]), x)
    scale, shift = torch.ops.ilm_plugins.network(mean, var, x.shape[1], key, given, present)
    y = torch.addcmul(per_channel(shift, x), per_channel(scale, x), centered)
    return y.to(dtype), mean.detach(), var.detach()


def network_for_operators(layer: Any, device: torch.device, dtype: torch.dtype) -> tuple | None:
    """Return a layer's network as a string, and its options; None if kernels do not compute it."""
    x = torch.empty(1, layer.num_channels, 2, device=device, dtype=dtype)
    network, kernels = layer.as_network(), backends.find_kernels(x)
    if (
        network is None
        # `is_exporting` is a constant, True, in Dynamo before torch 2.14 (PyTorch issue 176347).
        or torch.compiler._is_exporting_flag
        # In forward mode, operators would have a tangent of zero.
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or kernels is None
        or not kernels.runs(network, x, layer.moment_groups)
        or kernels is not _kernels(x)
    ):
        return None
    key = json.dumps((type(network).__name__, *network), default=lambda number: number.item())
    names = *network._fields, *layer.papers_form
    return key, network.num_parameters, network.mixes_batch, names, *read(layer, names)


# As torch.compiler.assume_constant_result does, which would import the compiler. It is a method of
# layers, because Dynamo accepts no module as an argument of such a function.
network_for_operators._dynamo_marked_constant = True  # type: ignore[attr-defined]


def read(layer: nn.Module, names: Sequence[str]) -> list:
    """Return a layer's attributes by name, tuples unpacked, None for a missing attribute."""
    values = [getattr(layer, name, None) for name in names]
    return [part for v in values for part in (v if isinstance(v, tuple) else (v,))]


def _kernels(x: Tensor) -> ModuleType:
    # Triton may be missing where no kernels run.
    return cpu if x.is_cpu else importlib.import_module(f"{__package__}.triton")


@functools.cache
def _network(key: str) -> Network:
    kind, *fields = json.loads(key)
    return Network.by_name[kind](*(tuple(f) if isinstance(f, list) else f for f in fields))


def _forward(x, num_groups, network, tensors, present, running, activation, slope):
    network, tensors = _network(network), with_none(tensors, present)
    x, dtype = dense(x), torch.promote_types(x.dtype, torch.float32)
    # Operators change no argument: the kernels update copies.
    empty = x.new_empty((0, x.shape[1]), dtype=dtype)
    updated = torch.stack(running).to(dtype) if running else empty
    rows = updated.unbind()

    def forward(plan, tensors, running):
        return plan.forward(x, tensors, running)

    plan = _plan(x, num_groups, network, tensors, activation, slope)
    if plan.takes((*tensors, *rows)):
        y, statistics = forward(plan, tensors, rows)
    else:
        y, statistics = plan.call_with_copies(forward, x, tensors, rows)
    return y, statistics, updated


def _plan(x, num_groups, network, tensors, activation, slope):
    found = None if activation is None else Activation(activation, slope)
    return _kernels(x).find_plan(x, num_groups, network, tensors, found)


def _fake_forward(x, num_groups, network, tensors, present, running, activation, slope):
    dtype = torch.promote_types(x.dtype, torch.float32)
    network = _network(network)
    sizes = network.sizes(x.shape[1])
    size = 2 * x.shape[0] * num_groups + sum(sizes[name] for name in network.buffers)
    if activation is not None:
        size += 2 * x.shape[0] * x.shape[1]
    updated = x.new_empty((len(running), x.shape[1]), dtype=dtype)
    return torch.empty_like(dense(x)), updated.new_empty(size), updated


def _backward(dy, x, num_groups, statistics, network, tensors, present, needs, activation, slope):
    network, inputs = _network(network), with_none(tensors, present)
    needs = [needs[0], *with_none(needs[1:], present)]
    x = dense(x)
    dy = in_layout_of(x, dy)
    plan = _plan(x, num_groups, network, inputs, activation, slope)
    parameters = given = inputs[: network.num_parameters]
    if not plan.takes(given):
        plan = plan.for_copies()
        given = plan.adapted(given)
    gradients = plan.backward(dy, x, statistics, given, needs[: 1 + len(parameters)])
    # Triton's kernels return gradients that are not needed, too.
    triples = zip(gradients, (x, *parameters), needs, strict=False)
    needed = [d if d.dtype == t.dtype else d.to(t.dtype) for d, t, need in triples if need]
    # Results must share no memory.
    return [d if d.nbytes == d.untyped_storage().nbytes() else d.clone() for d in needed]


def _fake_backward(dy, x, num_groups, statistics, network, tensors, present, needs, *_):
    likes = torch.empty_like(dense(x)), *(t.new_empty(t.shape) for t in tensors)
    return [like for like, need in zip(likes, needs, strict=True) if need]


def _save(ctx, inputs, output):
    x, ctx.num_groups, ctx.key, tensors, ctx.present, running, *ctx.activation = inputs
    ctx.num_running = len(running)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, output[1], *tensors)


def _differentiate(ctx, dy, *_):
    x, statistics, *tensors = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3]]
    arguments = dy, x, ctx.num_groups, statistics, ctx.key, tensors, ctx.present, needs
    found = torch.ops.ilm_plugins.backward(*arguments, *ctx.activation)
    dx, *gradients = with_none(found, needs)
    return dx, None, None, gradients, None, [None] * ctx.num_running, None, None


def _network_alone(mean, var, channels, network, tensors, present):
    from .triton import network_alone

    return network_alone.forward(
        mean, var, channels, _network(network), with_none(tensors, present)
    )


def _fake_network(mean, var, channels, network, tensors, present):
    size = mean.shape[0], channels
    return mean.new_empty(size), mean.new_empty(size)


def _network_alone_backward(d_scale, d_shift, mean, var, network, tensors, present):
    from .triton import network_alone

    given = with_none(tensors, present)
    return network_alone.backward(d_scale, d_shift, mean, var, _network(network), given)


def _fake_network_backward(d_scale, d_shift, mean, var, network, tensors, present):
    row = sum(_row(_network(network), d_scale.shape[1]).values())
    return torch.empty_like(mean), torch.empty_like(var), mean.new_empty((mean.shape[0], row))


def _row(network: Network, channels: int) -> dict[str, int]:
    """Return the sizes of an instance's gradients, see network_alone.backward, by tensor."""
    batch = dict.fromkeys(BATCH, channels) if network.mixes_batch else {}
    return network.gradient_sizes(channels) | batch


def _save_network(ctx, inputs, output):
    mean, var, _, ctx.key, tensors, ctx.present = inputs
    ctx.save_for_backward(mean, var, *tensors)


def _differentiate_network(ctx, d_scale, d_shift):
    mean, var, *tensors = ctx.saved_tensors
    arguments = d_scale, d_shift, mean, var, ctx.key, tensors, ctx.present
    d_mean, d_var, rows = torch.ops.ilm_plugins.network_backward(*arguments)
    # The compiler writes one sum for all tensors, of which each gradient is a view. In the kernel,
    # the last program would add up the rows alone.
    network = _network(ctx.key)
    row = _row(network, d_scale.shape[1])
    sums = dict(zip(row, rows.sum(0).split([*row.values()]), strict=True))
    names = itertools.compress(network.tensors, ctx.present)
    gradients = [
        _gradient_of(tensor, sums[name]) if need else None
        for tensor, name, need in zip(tensors, names, ctx.needs_input_grad[4], strict=True)
    ]
    return d_mean, d_var, None, None, gradients, None


def _gradient_of(tensor: Tensor, values: Tensor) -> Tensor:
    copies = tensor.numel() // values.numel()
    values = values.to(tensor.dtype)
    return (values if copies == 1 else values.repeat(copies)).view(tensor.shape)


def _refuse(ctx, *_):
    raise RuntimeError(
        "a compiled layer of ilm_plugins has no second derivatives; do not compile it, or compile "
        "it under use_backend('reference')"
    )


#: Older versions of torch than 2.7 compile the reference.
HAS_OPERATORS = hasattr(torch.compiler, "_is_exporting_flag")
if HAS_OPERATORS:
    _library = library.Library("ilm_plugins", "FRAGMENT")
    _ends = "str network, Tensor[] tensors, bool[] present"
    _after = "str? activation, float slope"
    _forward_ends = f"{_ends}, Tensor[] running, {_after}) -> (Tensor, Tensor, Tensor)"
    _backward_ends = f"Tensor statistics, {_ends}, bool[] needs, {_after}) -> Tensor[]"
    _library.define(f"forward(Tensor x, int num_groups, {_forward_ends}")
    _library.define(f"backward(Tensor dy, Tensor x, int num_groups, {_backward_ends}")
    _moments = "Tensor mean, Tensor var"
    _library.define(f"network({_moments}, int channels, {_ends}) -> (Tensor, Tensor)")
    _moments = f"Tensor d_scale, Tensor d_shift, {_moments}"
    _library.define(f"network_backward({_moments}, {_ends}) -> (Tensor, Tensor, Tensor)")
    for _device in ("CPU", "CUDA"):
        _library.impl("forward", _forward, _device)
        _library.impl("backward", _backward, _device)
        _library.impl("network", _network_alone, _device)
        _library.impl("network_backward", _network_alone_backward, _device)
    _names = "ilm_plugins::forward", "ilm_plugins::backward"
    library.register_fake(_names[0], _fake_forward, lib=_library)
    library.register_fake(_names[1], _fake_backward, lib=_library)
    library.register_autograd(_names[0], _differentiate, setup_context=_save, lib=_library)
    library.register_autograd(_names[1], _refuse, lib=_library)
    _names = "ilm_plugins::network", "ilm_plugins::network_backward"
    library.register_fake(_names[0], _fake_network, lib=_library)
    library.register_fake(_names[1], _fake_network_backward, lib=_library)
    library.register_autograd(
        _names[0], _differentiate_network, setup_context=_save_network, lib=_library
    )
    library.register_autograd(_names[1], _refuse, lib=_library)
