"""transformers: initialization of this package's layers in its models."""

import functools
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import nn

from ..layers.base import AdaptiveNorm

#: What transformers sets on modules and tensors that it has initialized or loaded.
IS_DONE = "_is_hf_initialized"


@functools.cache  # wrap it once
def initialize_layers(module: ModuleType) -> None:
    """Have transformers initialize the layers by their own method.

    It would initialize a norm's weight and bias only, takes EN, SN and SSN for BatchNorms, and
    ``from_pretrained`` allocates each tensor that the checkpoint lacks without a value.
    """
    wrapt.wrap_function_wrapper(module, "PreTrainedModel._initialize_weights", _initialize)


@torch.no_grad()
def _initialize(wrapped, _model: nn.Module, args: tuple, options: dict) -> Any:
    layer = args[0] if args else options.get("module")
    if not isinstance(layer, AdaptiveNorm):
        return wrapped(*args, **options)
    if not getattr(layer, IS_DONE, False):
        tensors = layer.state_dict(keep_vars=True).values()
        loaded = [(tensor, tensor.clone()) for tensor in tensors if getattr(tensor, IS_DONE, False)]
        layer.reset_parameters()
        for tensor, values in loaded:
            tensor.copy_(values)
        setattr(layer, IS_DONE, True)
