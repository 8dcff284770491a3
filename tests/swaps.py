"""What tests of swapped norms compare."""

import torch

from ilm_plugins.surgery.norms import is_norm


def randomized(model, seed=0):
    """The model, every weight, bias and running statistic of its norms random."""
    generator = torch.Generator().manual_seed(seed)
    for norm in filter(is_norm, model.modules()):
        own = dict(norm.named_parameters(recurse=False)) | dict(norm.named_buffers(recurse=False))
        for name, tensor in own.items():
            if tensor.is_floating_point():
                value = torch.rand(tensor.shape, generator=generator) + 0.5
                shift = 1 if name in ("bias", "running_mean") else 0
                tensor.data.copy_(value - shift)
    return model


#: 32 roundings of the largest value in float32: an output of a norm goes through some ten, those of
#: its statistics among them, on either side of a comparison.
SINGLE = 32 * 2**-24


def change(before, after):
    """The largest difference, relative to the largest value."""
    return ((after - before).abs().max() / before.abs().max()).item()
