"""Keep the memory layout of parameters in the optimizer state that a resumed run loads."""

import torch
from torch.optim import Optimizer


def keep_layouts(optimizer: Optimizer) -> Optimizer:
    """Have the state that is loaded into an optimizer take the memory layout of its parameters.

    torch's fused optimizers rely on it: on the CPU they mix up the elements of the state of a run
    that was begun with channels last and is resumed without, or the reverse.

    Returns:
        The same optimizer.
    """
    optimizer.register_load_state_dict_post_hook(_take_layouts)
    return optimizer


def _take_layouts(optimizer: Optimizer) -> None:
    """Copy those tensors of the state that have their parameter's shape, but other strides."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                same = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                state[name] = same.copy_(value)
