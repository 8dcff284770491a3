"""The primitive as operators of torch, by which models compiled by torch.compile run the kernels.

The compiler takes the layout of results from fake kernels. Lists of tensors lack those that are
None: ``present`` tells which of a network's tensors they are.
"""

import functools
import importlib
import json
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, library
from torch.autograd import forward_ad

from . import backends, cpu, networks
from .layouts import dense
from .networks import Network, Tensors, with_none


def adaptive_norm(
    x: Tensor, num_groups: int, eps: float, network: Callable[[], Network] | None, tensors: Tensors
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return y, mean and var if torch.compile traces x, and the graph may have operators."""
    if network is None or not (HAS_OPERATORS and torch.compiler.is_dynamo_compiling()):
        return None
    # A parameter's shape is constant, and x's may be symbolic.
    is_plain = (
        all(type(t) in backends.PLAIN for t in (x, *tensors)) and type(tensors[0]) is not Tensor
    )
    if not is_plain or not backends.has_variances(x, num_groups):
        return None
    described = network()
    key = _key(described, x.device, x.dtype, tensors[0].shape[-1], num_groups)
    buffers = [t for t in tensors[described.num_parameters :] if t is not None]
    # The comparison makes the compiler look at eps again in each call.
    if key is None or eps != described.eps or any(buffer.requires_grad for buffer in buffers):
        return None
    present = [t is not None for t in tensors]
    tensors = [t for t in tensors if t is not None]
    y, moments = torch.ops.ilm_plugins.forward(x, num_groups, key, tensors, present)
    return y, *moments.unbind()


def _key(
    network: Network, device: torch.device, dtype: torch.dtype, channels: int, num_groups: int
) -> str | None:
    """Return a network's description as a string; None if kernels do not compute it."""
    x = torch.empty(1, channels, 2, device=device, dtype=dtype)
    kernels = backends.find_kernels(x)
    if (
        # `is_exporting` is a constant, True, in Dynamo before torch 2.14 (PyTorch issue 176347).
        torch.compiler._is_exporting_flag
        # In forward mode, operators would have a tangent of zero.
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or kernels is not _kernels_of(x)
        or not kernels.runs(network, x, num_groups)
    ):
        return None
    return json.dumps((type(network).__name__, *network), default=lambda number: number.item())


# As by torch.compiler.assume_constant_result, which imports the compiler; see layers/base.py, too.
_key._dynamo_marked_constant = True


def _kernels_of(x: Tensor) -> ModuleType:
    return cpu if x.is_cpu else importlib.import_module(f"{__package__}.triton")


@functools.cache
def _network(key: str) -> Network:
    kind, *fields = json.loads(key)
    return getattr(networks, kind)(*(tuple(f) if isinstance(f, list) else f for f in fields))


def _forward(x, num_groups, network, tensors, present):
    kernels, tensors = _kernels_of(x), with_none(tensors, present)
    y, mean, var = kernels.forward(x, num_groups, _network(network), tensors)
    return y, torch.stack((mean, var))


def _fake_forward(x, num_groups, network, tensors, present):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(dense(x)), x.new_empty((2, x.shape[0], num_groups), dtype=dtype)


def _backward(dy, x, moments, network, tensors, present, needs):
    kernels, inputs = _kernels_of(x), with_none(tensors, present)
    needs = [needs[0], *with_none(needs[1:], present)]
    found = kernels.backward(dy, x, *moments, _network(network), inputs, needs)
    pairs = zip(found, (x, *inputs), strict=True)
    found = [d if d.dtype == t.dtype else d.to(t.dtype) for d, t in pairs if d is not None]
    return [d if d._base is None else d.clone() for d in found]  # results must share no memory


def _fake_backward(dy, x, moments, network, tensors, present, needs):
    likes = torch.empty_like(dense(x)), *(t.new_empty(t.shape) for t in tensors)
    return [like for like, need in zip(likes, needs, strict=True) if need]


def _save(ctx, inputs, output):
    x, _, ctx.key, tensors, ctx.present = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *tensors)


def _differentiate(ctx, dy, _):
    x, moments, *tensors = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3]]
    arguments = dy, x, moments, ctx.key, tensors, ctx.present, needs
    dx, *gradients = with_none(torch.ops.ilm_plugins.backward(*arguments), needs)
    return dx, None, None, gradients, None


def _refuse(ctx, *_):
    raise RuntimeError(
        "a compiled layer of ilm_plugins has no second derivatives; differentiate the layer that "
        "is not compiled, or compile it under use_backend('reference')"
    )


#: Older versions of torch than 2.7 compile the reference.
HAS_OPERATORS = hasattr(torch.compiler, "_is_exporting_flag")
if HAS_OPERATORS:
    _library = library.Library("ilm_plugins", "FRAGMENT")
    _ends = "str network, Tensor[] tensors, bool[] present"
    _library.define(f"forward(Tensor x, int num_groups, {_ends}) -> (Tensor, Tensor)")
    _library.define(
        f"backward(Tensor dy, Tensor x, Tensor moments, {_ends}, bool[] needs) -> Tensor[]"
    )
    for _device in ("CPU", "CUDA"):
        _library.impl("forward", _forward, _device)
        _library.impl("backward", _backward, _device)
    _names = "ilm_plugins::forward", "ilm_plugins::backward"
    library.register_fake(_names[0], _fake_forward, lib=_library)
    library.register_fake(_names[1], _fake_backward, lib=_library)
    library.register_autograd(_names[0], _differentiate, setup_context=_save, lib=_library)
    library.register_autograd(_names[1], _refuse, lib=_library)
