"""Count parameters and FLOPs of a model; a multiply-add counts as one, as in fvcore."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import missing
from ..layers.base import AdaptiveNorm
from ..surgery.common import evaluating
from .collect import watching

#: FLOPs that fvcore counts for each element of a GroupNorm: moments, standardization, affine map.
PER_ELEMENT = 5


def parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """Return the number of floating point operations of a forward pass in evaluation mode.

    A multiply-add counts as one, as everywhere in fvcore.

    fvcore counts convolutions, matrix products, poolings and norms, but no other element-wise
    operations. It does not know this package's layers, which are counted here: five operations per
    element, as for a GroupNorm (fvcore counts two for a BatchNorm in evaluation, whose statistics
    are known), and the multiply-adds of the layer's small network, see
    :meth:`.AdaptiveNorm.network_flops`.

    The model is run more than once, without gradients.

    Args:
        model: any module; the mode of each of its modules is restored.
        inputs: the model's positional arguments, such as a (1, 3, 224, 224) image; the count is for
            the whole batch.

    Raises:
        UserError: fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise missing("counting operations", error) from error

    with evaluating(model), torch.no_grad():
        # This runs first, because fvcore leaves its hooks in a model whose forward raises.
        own = _flops_of_layers(model, inputs)
        analysis = FlopCountAnalysis(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analysis.total() + own


def _flops_of_layers(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Run a model on inputs, and return the number of operations of this package's layers in it.

    Each call of a layer counts. The model's mode is the caller's; hooks are removed at the end.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, AdaptiveNorm)}
    found = []

    def count(name: str, of_call: Mapping[str, Tensor]) -> None:
        x = of_call["x"]
        found.append(PER_ELEMENT * x.numel() + len(x) * layers[name].network_flops())

    with watching(layers, count, lambda _, x: {"x": x}):
        model(*inputs)
    return sum(found)
