"""The papers' figures that need no training: parameters and floating point operations."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from ilm_plugins.layers import NORMS

from ..analysis import complexity
from .paper_runs import open_row
from .published import Cell, find_cell, tables

#: Channels of the layer of EN's Table 1.
CHANNELS = 64
#: Name of a norm in Table 1 that this package lacks -> its constructor, which takes the number of
#: channels. The table counts BKN's matrix A, which predicts the statistics of a layer from the
#: statistics of the layer before (Wang et al., arXiv 1802.03133).
PLAIN = {
    "BN": nn.BatchNorm2d,
    "IN": partial(nn.InstanceNorm2d, affine=True),
    "LN": partial(nn.GroupNorm, 1),
    "GN": partial(nn.GroupNorm, 32),
    "BKN": lambda channels: nn.Conv2d(channels, channels, 1, bias=False),
}


def compute(cell: Cell) -> dict[str, float]:
    """Return measure -> figure of a row that needs no training."""
    table = tables()[cell.table]
    return dict(zip(table.measures, FUNCTIONS[table.compute](**cell.of), strict=True))


def line(cell: Cell) -> str:
    """Return a line of a row's figures, beside the paper's."""
    table = tables()[cell.table]
    both = zip(table.texts(compute(cell).values()), table.texts(cell.paper), strict=True)
    texts = (f"{n} {our} (paper {p})" for n, (our, p) in zip(table.measures, both, strict=True))
    return f"{cell.id}: {', '.join(texts)}; computed"


def parameter_increment(depth: int, layer: str, **options: Any) -> tuple[float]:
    """Return the percentage of parameters that a norm adds to torchvision's ResNet with BN."""
    from torchvision import models

    build = getattr(models, f"resnet{depth}")
    with torch.device("meta"):
        plain = complexity.parameters(build())
        more = complexity.parameters(build(norm_layer=partial(NORMS[layer], **options)))
    return (100 * (more - plain) / plain,)


def layer_cost(layer: str) -> tuple[int, float]:
    """Return a layer's parameters, and the exponent p of its operations' growth, C ** p."""
    small, large = ((PLAIN | NORMS)[layer](c) for c in (CHANNELS, 2 * CHANNELS))
    once = complexity.flops(small, torch.zeros(2, CHANNELS, 32, 32))
    twice = complexity.flops(large, torch.zeros(2, 2 * CHANNELS, 32, 32))
    return complexity.parameters(small), math.log2(twice / once)


def cost(row: str) -> tuple[float, float]:
    """Return a row's parameters in millions, and its 1e9 multiply-adds at 224 x 224 pixels."""
    model = open_row(find_cell(row)).build_model()
    operations = complexity.flops(model, torch.zeros(1, 3, 224, 224))
    return complexity.parameters(model) / 1e6, operations / 1e9


#: A table's ``compute`` -> the function that computes its rows.
FUNCTIONS = {"parameter_increment": parameter_increment, "layer_cost": layer_cost, "cost": cost}
