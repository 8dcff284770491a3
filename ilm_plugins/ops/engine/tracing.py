"""Whether torch records or transforms a computation, so that kernels must not run."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

#: Types of tensors whose memory kernels may use; None is a tensor that a layer lacks.
PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
#: Modes in which torch records operations, or replaces tensors by descriptions of them.
RECORDING = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)

#: What :func:`is_traced` asks, which each call of a layer does: a look-up each instead of three.
_tracing_state = torch._C._get_tracing_state
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
_BEFORE_DISPATCH = torch._C.DispatchKey.PreDispatch
_num_modes = torch._C._len_torch_dispatch_stack
_are_transforms_active = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def is_traced(x: Tensor, *tensors: Tensor | None) -> bool:
    """Return whether a compiler, an exporter or torch.func records or transforms x."""
    return (
        torch.compiler.is_compiling()
        or _tracing_state() is not None
        or type(x) not in PLAIN  # other subclasses, such as DTensor
        or not PLAIN.issuperset(map(type, tensors))
        or _is_included(_BEFORE_DISPATCH)
        or (_num_modes() > 0 and any(map(_is_on, RECORDING)))  # make_fx
        or _are_transforms_active()
        or _is_batched(x)
        or forward_ad._current_level >= 0
    )


def _is_on(mode: Any) -> bool:
    return torch._C._get_dispatch_mode(mode) is not None
