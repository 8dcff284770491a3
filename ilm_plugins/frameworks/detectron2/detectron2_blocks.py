"""The modules of detectron2 in which layers may apply activations."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ...foreign_norms import Container, Place, path_of
from ...surgery.checks import has_hooks
from ...surgery.containers import followed


def _convolutions(block: Any) -> list[Any]:
    """Return the convolutions of a block in order, each with a norm, without the shortcut's."""
    names = ("conv1", "conv2", "conv3")
    return [getattr(block, name) for name in names if hasattr(block, name)]


def _places(block: Any) -> Iterator[Place]:
    """Yield the place of the activations that a block computes by relu_, after each norm."""
    convolutions, adds = _convolutions(block), hasattr(block, "shortcut")
    names = [f"conv{i}.norm" for i, _ in enumerate(convolutions, start=1)]
    refusal = ""
    if not all(map(_is_plain, convolutions)):
        refusal = "the block has other convolutions"
    elif any(map(has_hooks, convolutions)):
        refusal = "its convolution has hooks, which would see something else"
    yield Place(names, None, _run_block if adds else _run_stem, adds, refusal)


def _is_plain(convolution: Any) -> bool:
    """Return whether a convolution runs detectron2's own forward, and no activation."""
    is_own = path_of(type(convolution).forward) == f"{_CONV}.forward"
    return is_own and "forward" not in vars(convolution) and not convolution.activation


def _run_block(block: Any, x: Tensor) -> Tensor:
    """Run a block whose norms apply the activations, the last one after it adds the shortcut."""
    *inner, last = _convolutions(block)
    y = x
    for convolution in inner:
        y = convolution(y)
    y = nn.Conv2d.forward(last, y)  # detectron2's forward would call the norm without the shortcut
    return last.norm(y, x if block.shortcut is None else block.shortcut(x))


def _run_stem(stem: Any, x: Tensor) -> Tensor:
    return functional.max_pool2d(stem.conv1(x), kernel_size=3, stride=2, padding=1)


_CONV = "detectron2.layers.wrappers.Conv2d"
_RESNET = "detectron2.modeling.backbone.resnet"
_CALLS = {"conv1", "conv2", "conv3", "shortcut", "F", "relu_", "max_pool2d"}
CONTAINERS = {
    _CONV: followed("norm", "activation"),
    **{
        f"{_RESNET}.{block}": Container(_places, calls=frozenset(_CALLS))
        for block in ("BasicStem", "BasicBlock", "BottleneckBlock")
    },
}
