"""Modules whose forward applies activations to the outputs of norms, in the forms that recur."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..foreign_norms import Container, Place

#: What a residual block may have beside convolutions, norms, activations and a downsampling.
_BESIDE = ("drop_block", "aa", "se", "drop_path", "with_plugins", "with_dcn")
#: Names in the code of a residual block's forward.
_CALLS = {
    *(*_BESIDE, "relu", "downsample", "with_cp", "requires_grad", "cp", "checkpoint"),
    *(f"{name}{i}" for name in ("conv", "bn", "norm", "act") for i in (1, 2, 3)),
    *("forward_plugin", *(f"after_conv{i}_plugin_names" for i in (1, 2, 3))),
}


def _in_turn(module: nn.Module) -> Iterator[Place]:
    """Yield each two neighbours of children that run in turn.

    Where ``return_layers`` names children, the outputs of these are read, too.
    """
    children, read = [*module._modules], getattr(module, "return_layers", ())
    for norm, activation in pairwise(children):
        if norm not in read:
            yield Place([norm], activation)


def followed(norm: str, activation: str, *methods: str) -> Container:
    """Return the row of a class that runs this norm, then this activation, in forward."""
    return Container(partial(_pair, norm, activation), ("forward", *methods))


def _pair(norm: str, activation: str, _module: nn.Module) -> list[Place]:
    return [Place([norm], activation)]


def _stages(block: nn.Module) -> list[tuple[str, str, str]]:
    """Return the names of a residual block's convolutions, norms and activations, in order."""
    norm = "norm" if hasattr(block, "norm1") else "bn"
    numbers = (1, 2, 3) if hasattr(block, "conv3") else (1, 2)
    is_shared = hasattr(block, "relu")
    return [(f"conv{i}", f"{norm}{i}", "relu" if is_shared else f"act{i}") for i in numbers]


def _places_of_block(block: nn.Module) -> Iterator[Place]:
    norms = defaultdict(list)
    for _, norm, activation in _stages(block):
        norms[activation].append(norm)
    *_, last = norms
    values = {name: getattr(block, name, None) or None for name in _BESIDE}
    present = [name for name, v in values.items() if not isinstance(v, nn.Identity | None)]
    for activation, names in norms.items():
        adds = activation == last
        between = present if adds else [name for name in present if name == "drop_block"]
        refusal = f"the block has {', '.join(between)}" if between else ""
        yield Place(names, activation, run_residual if adds else None, adds, refusal)


def run_residual(block: Any, x: Tensor) -> Tensor:
    """Run a residual block whose last norm adds the shortcut and applies the activation."""

    def compute(x: Tensor) -> Tensor:
        y = x
        *inner, last = [[getattr(block, name) for name in names] for names in _stages(block)]
        for conv, norm, activation in inner:
            y = activation(norm(conv(y)))
        conv, norm, activation = last
        y = conv(y)
        shortcut = x if block.downsample is None else block.downsample(x)
        return activation(norm(y, shortcut))

    if getattr(block, "with_cp", False) and x.requires_grad:
        return checkpoint(compute, x)
    return compute(x)


#: Modules that run their children in turn.
IN_TURN = Container(_in_turn)
#: The ResNet blocks of torchvision, timm and OpenMMLab.
RESIDUAL = Container(_places_of_block, calls=frozenset(_CALLS))
