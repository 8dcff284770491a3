"""What tests of swapped norms build and compare."""

from functools import partial

import torch
from torch import nn

from ilm_plugins.surgery.norms import is_norm

GN4 = partial(nn.GroupNorm, 4)


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


class Small(nn.Module):
    """Two convolutions with norms, stem.1 and head.1, and one without."""

    def __init__(self, first, second):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), first, nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(16, 32, 3), second, nn.ReLU(), nn.Conv2d(32, 2, 1))
        self.double()

    def forward(self, x):
        return self.head(self.stem(x))


BOTH = ["stem.1", "head.1"]


def small(make=GN4):
    torch.manual_seed(0)
    return randomized(Small(make(16), make(32)))


class Block(nn.Module):
    """A module with one norm of this name."""

    def __init__(self, name, norm):
        super().__init__()
        self.add_module(name, norm.double())


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)
