"""The papers' figures that need no training: parameters and floating point operations."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from ..analysis import complexity
from ..cli import train_net
from ..errors import missing
from ..layers import NORMS
from .registry import ROOT, Cell, tables

#: Channels of the layer of EN's Table 1.
CHANNELS = 64
#: Name of a norm in Table 1 that is none of this package -> its constructor, which takes the number
#: of channels. Of BKN it is what the table counts: the matrix A by which it predicts the statistics
#: of a layer from those of the layer before (Wang et al., arXiv 1802.03133).
PLAIN = {
    "BN": nn.BatchNorm2d,
    "IN": partial(nn.InstanceNorm2d, affine=True),
    "LN": partial(nn.GroupNorm, 1),
    "GN": partial(nn.GroupNorm, 32),
    "BKN": lambda channels: nn.Conv2d(channels, channels, 1, bias=False),
}


def compute(cell: Cell) -> dict[str, float]:
    """Compute the figures of a cell that needs no training, as measure name -> figure.

    The table's ``compute`` names one of the functions below; the cell's ``of``, which must not be
    None, has its arguments.

    Raises:
        UserError: a package that the function needs is not installed.
    """
    table = tables()[cell.table]
    function = {
        "parameter_increment": parameter_increment,
        "layer_cost": layer_cost,
        "cost": cost,
    }[table.compute]
    return dict(zip(table.measures, function(**cell.of), strict=True))


def parameter_increment(depth: int, layer: str, **options: Any) -> tuple[float]:
    """Percentage of parameters that a norm layer adds to torchvision's ResNet with BatchNorm.

    Args:
        depth: 18, 34, 50, 101 or 152.
        layer: a name in :data:`ilm_plugins.layers.NORMS`, which replaces every BatchNorm.
        options: arguments of the layer.

    Returns:
        The percentage, as a tuple of one.

    Raises:
        UserError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise missing("this table", error) from error
    build = getattr(models, f"resnet{depth}")
    with torch.device("meta"):
        plain = complexity.parameters(build())
        more = complexity.parameters(build(norm_layer=partial(NORMS[layer], **options)))
    return (100 * (more - plain) / plain,)


def layer_cost(layer: str) -> tuple[int, float]:
    """Return a layer's number of parameters, and the exponent p of its operations' growth, C ** p.

    p is log2 of the ratio of the operations at 2C channels to those at C, for C = 64.

    Args:
        layer: a row of EN's Table 1.

    Raises:
        UserError: fvcore is not installed.
    """
    small, large = ((PLAIN | NORMS)[layer](c) for c in (CHANNELS, 2 * CHANNELS))
    once = complexity.flops(small, torch.zeros(2, CHANNELS, 32, 32))
    twice = complexity.flops(large, torch.zeros(2, 2 * CHANNELS, 32, 32))
    return complexity.parameters(small), math.log2(twice / once)


def cost(config: str) -> tuple[float, float]:
    """Return the cost of the model of an mmpretrain config, on an image of 224 x 224 pixels.

    The model is built and run on the CPU. MMEngine's default scope becomes the config's.

    Args:
        config: path below the project's root.

    Returns:
        The parameters in millions, and the multiply-adds in units of 1e9.

    Raises:
        UserError: mmpretrain or fvcore is not installed, or the config cannot be read.
    """
    words = ["--config-file", str(ROOT / config), "--num-gpus", "0"]
    args = train_net.parser().parse_args(words)
    train_net.check_framework("openmmlab", args)
    from ..frameworks.openmmlab import train

    model = train.model_of(train.load_config(args))
    operations = complexity.flops(model, torch.zeros(1, 3, 224, 224))
    return complexity.parameters(model) / 1e6, operations / 1e9
